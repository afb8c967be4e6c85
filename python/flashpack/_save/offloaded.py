"""The state dict of a module, with what accelerate's hooks hold of it while it is on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def whole_state_dict(module: nn.Module) -> Mapping[str, Any]:
    """`module.state_dict()`, in which offloaded tensors are what the hooks would put in their place.

    Tensors on the meta device that no hook holds stay there. Reads what is offloaded to disk into memory.
    """
    state: dict[str, Any] = module.state_dict()
    offloaded = [name for name, value in state.items() if isinstance(value, Tensor) and value.is_meta]
    if not offloaded:
        return state
    own = module.state_dict(keep_vars=True)
    held: dict[int, Tensor] = {}  # by the tensor that stands for it: of tied names, hooks may hold one alone
    for name in offloaded:
        value = None if id(own[name]) in held else _held_by_hooks(module, name)
        if value is not None:
            held[id(own[name])] = value.to(own[name].dtype)
    return {**state, **{name: held[id(own[name])] for name in offloaded if id(own[name]) in held}}


def _held_by_hooks(module: nn.Module, name: str) -> Tensor | None:
    parts = name.split(".")
    for depth in reversed(range(len(parts))):
        for hook in _hooks_of(module.get_submodule(".".join(parts[:depth]))):
            weights = getattr(hook, "weights_map", None) or {}
            try:
                value: Tensor = weights[".".join(parts[depth:])]
            except KeyError:
                continue
            return value
    return None


def _hooks_of(module: nn.Module) -> Iterator[Any]:
    waiting = [getattr(module, "_hf_hook", None)]
    while waiting:
        hook = waiting.pop()
        yield hook
        waiting.extend(getattr(hook, "hooks", ()))  # a SequentialHook's
