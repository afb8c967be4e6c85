"""What callers say in several ways: one device, one dtype, the options of a load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..._options import OPTION_NAMES, LoadOptions

_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
_STRICTNESS = ("strict", "strict_params", "strict_buffers")
_CLASS_DEFAULTS = ("ignore_names", "ignore_prefixes", "ignore_suffixes", "coerce_dtype")


def one_device(device: Any, device_map: Any) -> torch.device | None:
    """The device that `device` or `device_map` names: "cuda:0", 0, {"": device}.

    Raises ValueError for a map of several parts, a strategy such as "auto", or two different devices.
    """
    if isinstance(device_map, Mapping):
        if set(device_map) != {""}:
            raise ValueError(f'device_map must name one device, {{"": device}}, not {dict(device_map)}')
        device_map = device_map[""]
    if isinstance(device_map, str) and device_map in _STRATEGIES:
        raise ValueError(f"device_map must name one device, such as 'cuda:0', not {device_map!r}")
    given = {torch.device(value) for value in (device, device_map) if value is not None}
    if len(given) > 1:
        raise ValueError(f"device={device!r} and device_map={device_map!r} name different devices")
    return given.pop() if given else None


def one_dtype(dtype: Any, torch_dtype: Any) -> torch.dtype | None:
    """The dtype that either names; None and "auto" mean the file's. Raises ValueError or TypeError."""
    given = {value for value in (dtype, torch_dtype) if value is not None and value != "auto"}
    if len(given) > 1:
        raise ValueError(f"dtype={dtype} and torch_dtype={torch_dtype} differ: pass only dtype")
    chosen = given.pop() if given else None
    if chosen is not None and not isinstance(chosen, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, not {chosen!r}")
    return chosen


def take_load_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of a load from `arguments`, and return them."""
    return {name: arguments.pop(name) for name in [*arguments] if name in OPTION_NAMES}


def load_options(
    cls: type, given: Mapping[str, Any], device: torch.device | None, *, reports: bool
) -> LoadOptions:
    """The options `given`, with the class's `flashpack_*` defaults where they are None.

    A load that `reports` what is missing does not refuse it, unless told how strict to be.
    """
    chosen: dict[str, Any] = dict(given)
    for name in _CLASS_DEFAULTS:
        if chosen.get(name) is None:
            chosen[name] = getattr(cls, f"flashpack_{name}", LoadOptions.__dataclass_fields__[name].default)
    if reports and not chosen.keys() & set(_STRICTNESS):
        chosen |= {"strict": False, "strict_params": False}
    return LoadOptions.pick(chosen | {"device": torch.device("cpu") if device is None else device})
