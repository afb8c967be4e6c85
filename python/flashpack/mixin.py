"""FlashPackMixin: from_flashpack and save_flashpack for any module class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from ._core.constants import DEFAULT_ALIGN_BYTES, DEFAULT_NUM_WRITE_WORKERS
from ._core.names import (
    clipped,
    close_match,
    filter_kwargs_for_method,
    initialiser,
    keywords_of,
    listed,
    warn,
    warn_of_unused,
)
from ._core.paths import StrPath
from ._files.opened import OpenModel
from ._files.sources import ModelPath, model_path, shown_path
from ._load.load import as_device
from ._load.meta import left_on_meta, parameters_on_meta
from ._load.options import OPTION_NAMES, LoadOptions
from ._module.arguments import arguments_metadata, completed, described_for, remember
from ._module.assign import assign, assign_from_file
from ._save.pack import pack_to_file

__all__ = ["FlashPackMixin", "assign_from_file"]

M = TypeVar("M", bound="FlashPackMixin")

_RANKS = ("rank", "local_rank", "world_size")


class _SignatureOfInit:
    """The signature of a class: its constructor's, whatever `__new__` takes."""

    def __get__(self, instance: object, owner: type[Any]) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(owner.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class FlashPackMixin:
    """Mix into an nn.Module class, before or after nn.Module.

    Class attributes: `flashpack_init_method` names a classmethod to build the model with instead of the
    class itself; `flashpack_coerce_dtype` and `flashpack_ignore_*` are defaults for loading, for where the
    caller gives nothing or None.

    The arguments of the constructor are kept in the file, if they are plain values: numbers, strings, bools,
    None, dtypes, and lists, tuples and dicts of these. `from_flashpack` needs none then. With
    `flashpack_keep_arguments = False` none are kept.
    """

    flashpack_coerce_dtype: ClassVar[bool] = False
    flashpack_keep_arguments: ClassVar[bool] = True
    flashpack_init_method: ClassVar[str | None] = None
    flashpack_ignore_names: ClassVar[list[str] | None] = None
    flashpack_ignore_prefixes: ClassVar[list[str] | None] = None
    flashpack_ignore_suffixes: ClassVar[list[str] | None] = None
    __signature__ = _SignatureOfInit()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the object, and remember the arguments of its constructor."""
        make = super().__new__
        made = make(cls) if make is object.__new__ else make(cls, *args, **kwargs)
        if isinstance(made, nn.Module) and cls.flashpack_keep_arguments:
            remember(made, inspect.signature(cls), args, kwargs)
        return made

    @classmethod
    def from_flashpack(
        cls: type[M],
        path: ModelPath,
        *args: Any,
        device: str | torch.device | None = None,
        silent: bool = False,
        init_fn: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> M:
        """Build a model without memory for its parameters and load them from a file, in eval mode.

        Keyword arguments that are options of `assign_from_file` are taken as such. `args` and those of the
        other keyword arguments that the initialiser knows go to it; the rest have no effect, and a warning
        names them. What they leave out is as it was when the model was saved, if its file keeps that.
        `rank`, `local_rank` and `world_size` go to both, `dtype` to an initialiser that has a
        parameter of this name, else to the load. `device` defaults to the CPU.

        Raises what `assign_from_file` raises; warns about tensors that the file left on the meta device.
        """
        build = init_fn or initialiser(cls, cls)
        own = _init_arguments(build, kwargs)
        chosen = {name: value for name, value in kwargs.items() if name not in own or name in _RANKS}
        target = "cpu" if device is None else device
        options = LoadOptions.of(cls, {**chosen, "device": target, "silent": silent})
        source: ModelPath | OpenModel = path
        if build is cls:
            source, footer = described_for(path, as_device(target), options)
            bound = completed(inspect.signature(cls), args, own, footer, _shown(path))
            args, own = bound.args, bound.kwargs
        with parameters_on_meta():
            model: M = build(*args, **own)
        if not isinstance(model, nn.Module):
            raise TypeError(f"from_flashpack needs a torch.nn.Module, not {type(model).__name__}")
        assign(model, source, options)
        model.eval()
        _warn_of_leftovers(model, path)
        return model

    def save_flashpack(
        self,
        destination_path: StrPath,
        target_dtype: torch.dtype | None = None,
        name_order: list[str] | None = None,
        align_bytes: int = DEFAULT_ALIGN_BYTES,
        silent: bool = False,
        num_workers: int = DEFAULT_NUM_WRITE_WORKERS,
        *,
        checksum: str | None = None,
        max_shard_size: int | str | None = None,
        compress: str | None = None,
    ) -> None:
        """Write this model to a FlashPack file: `pack_to_file`."""
        if not isinstance(self, nn.Module):
            raise TypeError(f"save_flashpack needs a torch.nn.Module, not {type(self).__name__}")
        pack_to_file(
            self,
            destination_path,
            target_dtype,
            name_order,
            align_bytes,
            silent,
            num_workers,
            metadata=arguments_metadata(self),
            checksum=checksum,
            max_shard_size=max_shard_size,
            compress=compress,
        )


def _init_arguments(build: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of `kwargs` that the initialiser takes, load options aside. Warns of what nothing takes."""
    named, takes_any = keywords_of(build)
    others = (kwargs.keys() - OPTION_NAMES) | ({"dtype"} & named & kwargs.keys())
    known = OPTION_NAMES | named | {"init_fn"}
    unnamed = others - named
    # Those that only **kwargs takes may end there, too.
    warn_of_unused({name for name in unnamed if close_match(name, known)} if takes_any else unnamed, known)
    chosen = filter_kwargs_for_method({name: kwargs[name] for name in kwargs if name in others}, build)
    return chosen | {name: kwargs.get(name) for name in _RANKS if name in named}


def _warn_of_leftovers(model: nn.Module, path: ModelPath) -> None:
    if leftovers := left_on_meta(model):
        warn(
            f"{len(leftovers)} tensor(s) remain on the meta device after loading from {_shown(path)} "
            f"and have no data: {listed(leftovers)}. Using the model will crash or produce incorrect results."
        )


def _shown(path: ModelPath) -> str:
    return clipped(shown_path(model_path(path)))
