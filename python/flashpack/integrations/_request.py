"""What the caller of a load asks for, collected from its arguments once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._core.dtypes import dtype_name
from .._core.names import filter_state_dict
from .._core.paths import StrPath, is_url
from .._files.opened import OpenModel
from .._files.sources import shown_path
from .._hub.client import HubOptions
from .._load.load import as_device, load_tensors
from .._load.options import OPTION_NAMES, LoadOptions
from ._weights import fetch_weights

REQUEST_NAMES = ("device_map", "dtype", "output_loading_info", "subfolder", "torch_dtype", "variant")
# Meant for other formats or for choosing a class, and taken so that calls need not be rewritten.
_WITHOUT_MEANING = (
    *("disable_mmap", "low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_folder"),
    *("offload_state_dict", "trust_remote_code", "use_flashpack", "use_safetensors", "weights_only"),
)
_STRICTNESS = ("strict", "strict_params", "strict_buffers")


@dataclass(frozen=True)
class Unpacked:
    """A model whose configuration lies in `folder`, and whose tensors were loaded from what messages call
    `shown`.

    `parts` are the tensors of this model and others by the names of their folders.
    """

    shown: str
    folder: Path
    parts: Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class LoadRequest:
    """A load of one model, as its caller asks for it.

    `source` is what the caller named; `folder` has the configuration, `path` the weights, which are `tensors`
    if they were loaded before, ignored ones aside. `device` and `dtype`: None where the caller names none.
    `library`: arguments that are for the model's library alone.
    """

    source: str
    folder: Path
    path: str
    tensors: Mapping[str, Tensor] | None
    device: torch.device | None
    dtype: torch.dtype | None
    output_loading_info: bool
    options: LoadOptions
    library: Mapping[str, Any]

    @classmethod
    def take(
        cls,
        model_class: type[Any],
        source: StrPath | Unpacked,
        device: Any,
        arguments: dict[str, Any],
        beside: Iterable[str],
        library: Iterable[str],
    ) -> LoadRequest:
        """Collect the request from `arguments`, remove it there, and find or fetch the weights.

        `beside` names the files that are fetched with them, `library` the arguments for the library, which
        count only if they ask for something. `model_class` may have defaults.

        Raises what `fetch_weights` raises, and ValueError for more than one device or dtype, an unknown
        dtype, and options without sense.
        """
        requested = {name: arguments.pop(name, None) for name in REQUEST_NAMES}
        target = one_device(device, requested["device_map"])
        dtype = one_dtype(requested["dtype"], requested["torch_dtype"])
        reports = bool(requested["output_loading_info"])
        hub = HubOptions.take(arguments)
        options = load_options(model_class, take_load_options(arguments), target, reports=reports)
        for name in _WITHOUT_MEANING:
            arguments.pop(name, None)
        own = {name: arguments.pop(name, None) for name in library}
        own = {name: value for name, value in own.items() if value}
        if isinstance(source, Unpacked):
            name, path, folder = source.shown, source.shown, source.folder
            tensors = filter_state_dict(source.parts[folder.name], **options.ignore)
        else:
            folder, path = fetch_weights(source, hub, requested["subfolder"], requested["variant"], beside)
            name, tensors = shown_path(os.fspath(source)), None
            options = replace(options, cache_dir=hub.cache_dir) if is_url(source) else options
        return cls(name, folder, path, tensors, target, dtype, reports, options, own)

    @property
    def shown(self) -> str:
        """What messages call the weights."""
        return shown_path(self.path)

    @functools.cached_property
    def weights(self) -> OpenModel:
        """The file at `path`, opened once."""
        model = OpenModel(self.path, self.options.cache_dir)
        self.options.check_include(model.shown, model.footer)
        return model

    @property
    def target(self) -> torch.device:
        """Where the model goes."""
        return self.device or torch.device("cpu")

    def load(self) -> dict[str, Tensor]:
        """The tensors of `weights`, ignored ones aside, on the device."""
        ignore, reading = self.options.ignore, self.options.reading
        return load_tensors(self.weights, self.target, ignore=ignore, **reading)


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
    dtype = getattr(torch, dtype_name(given), None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f'dtype must be a floating torch.dtype, its name, or "auto", not {given!r}')
    return dtype


def asked(arguments: Mapping[str, Any]) -> set[str]:
    """The names of those that ask for something: None and False do not."""
    return {name for name, value in arguments.items() if value is not None and value is not False}


def take_load_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of `assign_from_file` from `arguments`, and return them."""
    return {name: arguments.pop(name) for name in [*arguments] if name in OPTION_NAMES}


def load_options(
    cls: type[Any], given: Mapping[str, Any], device: torch.device | None, *, reports: bool = False
) -> LoadOptions:
    """The options `given`, with the defaults of the class if it has FlashPackMixin.

    A load that `reports` what is missing does not refuse it, unless told how strict to be. Raises ValueError
    for `in_place`, and for options that make no sense.
    """
    if given.get("in_place"):
        raise ValueError("in_place=True fills a model that exists: use flashpack.assign_from_file")
    chosen = {**given, "device": torch.device("cpu") if device is None else device}
    if reports and all(chosen.get(name) is None for name in _STRICTNESS):
        chosen |= dict.fromkeys(_STRICTNESS, False)
    return LoadOptions.of(cls, chosen)


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
