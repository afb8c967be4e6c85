"""What callers say in several ways: one device, one dtype, the options of a load."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from .._core.hints import close_match, listed, warn
from .._load.load import as_device
from .._load.options import OPTION_NAMES, LoadOptions
from ..mixin import FlashPackMixin

_STRICTNESS = ("strict", "strict_params", "strict_buffers")


def one_device(device: Any, device_map: Any) -> torch.device | None:
    """The device that `device` or `device_map` names: "cuda:0", 0, {"": device}; None if neither does.

    Raises ValueError for what names no device, a map to several, or two different ones.
    """
    mapped = device_map
    if isinstance(device_map, Mapping):
        targets = list(dict.fromkeys(device_map.values()))
        mapped = targets[0] if len(targets) == 1 else device_map
    try:
        named = {as_device(each) for each in (device, mapped) if each is not None}
    except (RuntimeError, TypeError):
        raise ValueError(
            'a FlashPack model loads to a single device, as device_map={"": "cuda:0"} names it, '
            f"not to device={device!r}, device_map={device_map!r}"
        ) from None
    if len(named) > 1:
        raise ValueError(f"device={device!r} and device_map={device_map!r} name different devices")
    return named.pop() if named else None


def one_dtype(dtype: Any, torch_dtype: Any) -> torch.dtype | None:
    """The dtype that either names, itself or by its name; None and "auto" mean the file's.

    Raises ValueError for what is no floating dtype, or two different ones.
    """
    named = {_dtype(each) for each in (dtype, torch_dtype) if each is not None and each != "auto"}
    if len(named) > 1:
        raise ValueError(f"dtype={dtype} and torch_dtype={torch_dtype} differ: pass only dtype")
    return named.pop() if named else None


def _dtype(given: Any) -> torch.dtype:
    dtype = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f'dtype must be a floating torch.dtype, its name, or "auto", not {given!r}')
    return dtype


def take_load_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of a load from `arguments`, and return them."""
    return {name: arguments.pop(name) for name in [*arguments] if name in OPTION_NAMES}


def load_options(
    cls: type[Any], given: Mapping[str, Any], device: torch.device | None, *, reports: bool
) -> LoadOptions:
    """The options `given`, with the defaults of the class if it has FlashPackMixin.

    A load that `reports` what is missing does not refuse it, unless told how strict to be. Raises ValueError
    for `in_place`, and for options that make no sense.
    """
    if given.get("in_place"):
        raise ValueError("in_place=True fills a model that exists: use flashpack.assign_from_file")
    chosen = {**given, "device": torch.device("cpu") if device is None else device}
    if reports and all(chosen.get(name) is None for name in _STRICTNESS):
        chosen |= {"strict": False, "strict_params": False, "strict_buffers": False}
    pick = cls._options if issubclass(cls, FlashPackMixin) else LoadOptions.pick
    return pick(chosen)


def initialiser(cls: type[Any], default: Callable[..., Any]) -> Callable[..., Any]:
    """The method of `cls` that its `flashpack_init_method` names, if it has both, or `default`."""
    found: Callable[..., Any] = getattr(cls, getattr(cls, "flashpack_init_method", None) or "", default)
    return found


def add_switch(cls: Any, load: Callable[..., Any]) -> None:
    """Have `cls.from_pretrained(..., use_flashpack=True)` call `load`; `flashpack_kwargs` are more arguments.

    Other calls go on as ever. Does nothing to a class that inherits the method or has the switch.
    """
    method = vars(cls).get("from_pretrained")
    if method is None or hasattr(method.__func__, "has_flashpack_switch"):
        return
    original: Callable[..., Any] = method.__func__

    @functools.wraps(original)
    def from_pretrained(cls: Any, *args: Any, use_flashpack: bool = False, **kwargs: Any) -> Any:
        if not use_flashpack:
            return original(cls, *args, **kwargs)
        options = kwargs.pop("flashpack_kwargs", None) or {}
        return load(cls, *args, **kwargs, **options)

    from_pretrained.has_flashpack_switch = True  # type: ignore[attr-defined]
    cls.from_pretrained = classmethod(from_pretrained)  # type: ignore[arg-type]


# Arguments of the libraries' save_pretrained that do not matter to a FlashPack file, and their usual values.
_WITHOUT_EFFECT = {"safe_serialization": True, "save_function": None}


def check_save_arguments(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Warn of those arguments of the libraries' save_pretrained that have no effect on a FlashPack file.

    Raises TypeError for an argument that neither the libraries nor `known` have: it may have been meant to
    change what is saved.
    """
    unknown = [name for name in given if name not in {*_WITHOUT_EFFECT, "use_flashpack"}]
    if unknown:
        match = close_match(unknown[0], known)
        hint = f"; did you mean {match!r}?" if match else ""
        raise TypeError(f"save_pretrained_flashpack() got unknown arguments {listed(unknown)}{hint}")
    ignored = [name for name, usual in _WITHOUT_EFFECT.items() if given.get(name, usual) is not usual]
    if ignored:
        warn(f"save_pretrained_flashpack() ignores {listed(ignored)}: FlashPack writes its own format")
