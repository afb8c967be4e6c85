"""Models larger than a device's memory, with accelerate's hooks: layers wait in the file itself.

What accelerate calls offloading to disk needs no folder of its own here. The weights that are offloaded are a
mapping of the FlashPack file: the page cache holds as much of them as there is room for, and each layer goes
to the device when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import accelerate
import torch
from torch import nn

from .._core.paths import StrPath, text_path
from .._files.opened import OpenModel
from .._load.load import Device
from .._load.options import LoadOptions
from .._module.assign import assign, assign_from_file, assign_to
from .._module.slots import find_slots

__all__ = ["disk_offload", "load_checkpoint_and_dispatch", "load_checkpoint_in_model"]

M = TypeVar("M", bound=nn.Module)

_OFFLOADED = ("cpu", "disk")
# What accelerate's functions take for folders and copies that are not made here, and for one reader of many.
_WITHOUT_MEANING = ("broadcast_from_rank0", "full_state_dict", "offload_folder", "offload_state_dict")


def disk_offload(
    model: M,
    path: StrPath,
    execution_device: Device,
    **options: Any,
) -> M:
    """Run `model` on `execution_device` with its weights left in the file, a layer at a time.

    The model may be on the meta device (`accelerate.init_empty_weights`). `options` are those of
    `assign_from_file` (`verify=True` reads the file once, to verify it), and `offload_buffers` and
    `preload_module_classes` of `accelerate.disk_offload`. Keep the file while the model lives.

    Raises what `assign_from_file` raises, and ValueError for a URL.
    """
    hooks = _taken(options, ("offload_buffers", "preload_module_classes"))
    weights = OpenModel(text_path(path))
    chosen = _map(model, weights, options)
    if chosen.verify:
        assign(model, weights, replace(chosen, device="cpu", eager=False))
    offloaded: M = accelerate.cpu_offload(model, torch.device(execution_device), **hooks)
    return offloaded


def load_checkpoint_and_dispatch(
    model: M,
    path: StrPath,
    device_map: str | Mapping[str, Device] | None = "auto",
    *,
    max_memory: dict[int | str, int | str] | None = None,
    no_split_module_classes: list[str] | None = None,
    **options: Any,
) -> M:
    """Spread `model` over devices by `device_map`, as accelerate's function of this name does.

    Modules on devices are loaded there directly; those on "cpu" and "disk" stay in the file, mapped. The
    model may be on the meta device. Without a map (None) this is `load_checkpoint_in_model`. `options` are
    those of `assign_from_file` (`verify=True` verifies what stays in the file, too), and `offload_buffers`,
    `skip_keys`, `preload_module_classes` and `force_hooks` of accelerate's function, whose others have no
    effect.

    Raises ValueError for a map that does not cover the model and for a URL, and what `assign_from_file`
    raises.
    """
    hooks = _taken(options, ("offload_buffers", "skip_keys", "preload_module_classes", "force_hooks"))
    if device_map is None:
        load_checkpoint_in_model(model, path, **options)
        return model
    options = _meant(options)
    weights = OpenModel(text_path(path))
    chosen = _map(model, weights, options)
    if isinstance(device_map, str):
        device_map = _inferred(model, device_map, max_memory, no_split_module_classes)
    places = _spread(model, weights, device_map, chosen)
    dispatched: M = accelerate.dispatch_model(model, places, **hooks)
    return dispatched


def load_checkpoint_in_model(
    model: nn.Module, path: StrPath, device_map: Mapping[str, Device] | None = None, **options: Any
) -> None:
    """Load into `model`, on the devices of the map but without hooks, as accelerate's function of this name.

    Without a map each tensor stays on its device; those on the meta device go to the CPU. What the map says
    is on "cpu" or "disk" is mapped. `options` are those of `assign_from_file`, and what it raises is raised;
    those of accelerate's function for other folders and processes have no effect.
    """
    options = _meant(options)
    options.pop("offload_buffers", None)
    if device_map is None:
        assign_from_file(model, path, **options)
        return
    weights = OpenModel(text_path(path))
    _spread(model, weights, device_map, _map(model, weights, options))


def _spread(
    model: nn.Module, weights: OpenModel, device_map: Mapping[str, Device], options: LoadOptions
) -> dict[str, Device]:
    """Load each tensor to its device; returns the map, in which nothing is on "disk": it is mapped."""
    places: dict[str, Device] = {
        name: "cpu" if device in _OFFLOADED else device for name, device in device_map.items()
    }
    devices = {name: _place_of(name, places) for name in find_slots(model)}
    assign_to(model, weights, devices, replace(options, device="cpu", eager=False))
    return places


def _meant(options: Mapping[str, Any]) -> dict[str, Any]:
    """The `options` without those that mean nothing here, and without a dtype that is None."""
    asks = {name: value for name, value in options.items() if name not in _WITHOUT_MEANING}
    if asks.get("dtype", "") is None:
        del asks["dtype"]
    return asks


def _taken(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Remove accelerate's own from `options`, and return them."""
    return {name: options.pop(name) for name in names if name in options}


def _map(model: nn.Module, weights: OpenModel, options: Mapping[str, Any]) -> LoadOptions:
    """Give all of the model its weights as mappings of the file, which reads none of them."""
    if weights.is_remote:
        raise ValueError(f"{weights.shown}: weights can stay in a file, not behind a URL: copy it first")
    unknown = options.keys() - LoadOptions.__dataclass_fields__.keys()
    if unknown:
        raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
    chosen = LoadOptions.pick(options)
    assign(model, weights, replace(chosen, device="cpu", eager=False, verify=False))
    return chosen


def _inferred(
    model: nn.Module,
    strategy: str,
    max_memory: dict[int | str, int | str] | None,
    no_split_module_classes: list[str] | None,
) -> dict[str, Device]:
    if strategy != "sequential":
        max_memory = accelerate.utils.get_balanced_memory(
            model,
            max_memory=max_memory,
            no_split_module_classes=no_split_module_classes,
            low_zero=strategy == "balanced_low_0",
        )
    inferred: dict[str, Device] = accelerate.infer_auto_device_map(
        model, max_memory=max_memory, no_split_module_classes=no_split_module_classes
    )
    return inferred


def _place_of(name: str, places: Mapping[str, Device]) -> torch.device:
    """The device of the innermost module of the map that holds the tensor `name`."""
    holders = [module for module in places if not module or name == module or name.startswith(f"{module}.")]
    return torch.device(places[max(holders, key=len)] if holders else "cpu")
