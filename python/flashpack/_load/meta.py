"""Building a model whose parameters have no memory yet, while its buffers are real."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakTensorKeyDictionary

from .._core.tensors import has_own_dispatch, is_uninitialized, rebuild, swapped

# The parameters already moved inside the current `with`, so that one registered twice stays one.
_moved: ContextVar[WeakTensorKeyDictionary | None] = ContextVar("flashpack_meta_parameters", default=None)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Inside, every parameter that a module registers moves to the meta device at once.

    Its own initialisation then costs nothing, and tied parameters stay tied. Buffers stay real: those
    that a file does not hold (rotary frequencies, position ids) keep the values computed for them.

    torch's own registration hook does it, installed once and idle outside; a context variable says who is
    inside, so other threads build their models as ever.
    """
    _install_hook()
    token = _moved.set(WeakTensorKeyDictionary())
    try:
        yield
    finally:
        _moved.reset(token)


@functools.cache  # twice does no harm: what is on the meta device stays as it is
def _install_hook() -> None:
    # torch's annotation leaves out that a hook may return the parameter to hold instead
    register_module_parameter_registration_hook(cast("Callable[..., None]", _move_to_meta))


def _move_to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    moved = _moved.get()
    if moved is None or parameter.is_meta or is_uninitialized(parameter) or has_own_dispatch(parameter):
        return None
    if parameter not in moved:
        on_meta = rebuild(parameter, parameter.detach().to("meta"))
        if swapped(parameter, on_meta):  # whoever else holds it holds one that is loaded, too
            return None
        moved[parameter] = on_meta
    replacement: nn.Parameter = moved[parameter]
    return replacement


def left_on_meta(model: nn.Module) -> list[str]:
    """The names of the model's tensors that have no data."""
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    return [name for name, tensor in tensors if tensor.is_meta]
