"""The devices of a model's tensors, and weights that wait elsewhere.

accelerate's and diffusers' hooks bring the latter in before each forward. What such a hook holds is what the
model computes with, so that is what a load replaces. Needs neither library.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core.tensors import hooks_of, is_on, rebuild
from .._load.load import as_device
from .._load.options import LoadOptions
from .dtensors import is_dtensor
from .slots import Slot


def device_of(model: nn.Module, options: LoadOptions) -> torch.device:
    """The device asked for, else the model's own; meta is where weights come from, never where they go."""
    device = _own_device(model) if options.device is None else as_device(options.device)
    if device.type != "meta":
        return device
    shard = next((parameter for parameter in model.parameters() if is_dtensor(parameter)), None)
    return torch.device("cpu" if shard is None else shard.device_mesh.device_type)


def _own_device(model: nn.Module) -> torch.device:
    try:
        stated = model.device  # of many libraries' classes; of others a submodule, a method, or anything else
    except Exception:  # noqa: BLE001 (whatever the class's own code raises)
        stated = None
    if isinstance(stated, torch.device):
        return as_device(stated)
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def places_of(
    model: nn.Module,
    slots: Mapping[str, Slot],
    held: Collection[str],
    device: torch.device,
    options: LoadOptions,
) -> dict[str, torch.device]:
    """The device of each tensor, where that is not always `device`; else nothing.

    What a hook holds waits on the CPU. Unless a device is asked for, the rest stays where it is.
    """
    if options.device is not None:
        refuse_to_move(model, device)
    if not held and len({slot.tensor.device for slot in slots.values()}) < 2:
        return {}
    places = {}
    for name, slot in slots.items():
        stays = options.device is None and not slot.tensor.is_meta
        places[name] = torch.device("cpu") if name in held else slot.tensor.device if stays else device
    real = {slot.tensor.device for slot in slots.values() if not slot.tensor.is_meta}
    several = bool(held) or len(real) > 1
    return places if several and set(places.values()) != {device} else {}


class Held(NamedTuple):
    """A tensor of the model that waits in `weights[key]`; by `tied`, addresses of such to their copies."""

    weights: dict[str, Tensor]
    key: str
    tied: dict[int, Any] | None

    def replace(self, slot: Slot, value: Tensor) -> Tensor:
        """Hold `value`; returns what stands for it in the model until it is needed."""
        before = self.weights.get(self.key)
        if self.tied and before is not None:  # the next tensor at its address is another one
            self.tied.pop(before.data_ptr(), None)
        self.weights[self.key] = value
        on_meta = value.to("meta")
        return rebuild(slot.tensor, on_meta) if isinstance(slot.tensor, nn.Parameter) else on_meta


def find_held(model: nn.Module) -> dict[str, Held]:
    """What accelerate has offloaded, by its name in the model.

    Raises ValueError for weights that wait where they cannot be replaced.
    """
    held: dict[str, Held] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if group := _group_on_disk(module):
            raise ValueError(
                f"{path or type(model).__name__}: diffusers has offloaded its weights to files in {group!r}, "
                "which a load does not change: load before offloading is enabled"
            )
        for hook in hooks_of(module):
            if getattr(hook, "offload", None) is True and getattr(hook, "weights_map", None) is not None:
                weights, inner = _innermost(hook.weights_map, prefix)
                for name in _names_held(module, hook):
                    held[prefix + name] = Held(weights, inner + name, hook.tied_params_map)
    return held


def refuse_to_move(model: nn.Module, device: torch.device) -> None:
    """Raise ValueError if accelerate's hooks run a part of the model on another device than `device`."""
    if "accelerate.hooks" not in sys.modules:
        return
    for path, module in model.named_modules():
        for hook in hooks_of(module):
            if getattr(hook, "execution_device", None) is None or getattr(hook, "offload", None) is not False:
                continue
            for tensor in module.parameters(recurse=hook.place_submodules):
                if not tensor.is_meta and not is_on(tensor, device):
                    raise ValueError(
                        f"{path or type(model).__name__}: accelerate runs it on {tensor.device}, so it "
                        f"cannot be loaded to {device}; without `device`, each part is loaded to its own"
                    )


def _names_held(module: nn.Module, hook: Any) -> Iterator[str]:
    deep: bool = hook.place_submodules
    yield from (name for name, _ in module.named_parameters(recurse=deep, remove_duplicate=False))
    if hook.offload_buffers:
        for path, owner in module.named_modules() if deep else [("", module)]:
            for name in owner._buffers.keys() - owner._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name


def _innermost(weights: Any, path: str) -> tuple[dict[str, Tensor], str]:
    """The dict to replace weights in, and the prefix of their names there."""
    prefix = ""
    while hasattr(weights, "dataset") and hasattr(weights, "prefix"):  # accelerate's PrefixedDataset
        weights, prefix = weights.dataset, weights.prefix + prefix
    state = getattr(weights, "state_dict", None)
    if isinstance(state, dict):  # its OffloadedWeightsLoader, which asks this before it reads its files
        return state, prefix
    if not isinstance(weights, dict):
        raise ValueError(
            f"{path or 'the model'}: its weights are offloaded to a {type(weights).__name__}, in which "
            "flashpack cannot replace them: load before they are offloaded"
        )
    return weights, prefix


def is_grouped(model: nn.Module) -> bool:
    """Whether diffusers offloads the model in groups, which hold copies of weights that are in memory."""
    if (
        "diffusers.hooks.group_offloading" not in sys.modules
    ):  # else a walk that many small tensors would feel
        return False
    return any(True for module in model.modules() for _ in _groups_of(module))


def refresh_groups(model: nn.Module, replaced: Mapping[int, Tensor]) -> None:
    """Renew the copies of `replaced`, by id, that diffusers' group offloading moves to its device."""
    for module in model.modules():
        for group in _groups_of(module):
            for tensor in group.cpu_param_dict:
                if id(tensor) in replaced:
                    copy = tensor.data.cpu()
                    group.cpu_param_dict[tensor] = copy if group.low_cpu_mem_usage else copy.pin_memory()


def _group_on_disk(module: nn.Module) -> str | None:
    return next((path for group in _groups_of(module) if (path := group.offload_to_disk_path)), None)


def _groups_of(module: nn.Module) -> Iterator[Any]:
    registry = vars(module).get("_diffusers_hook")
    for hook in getattr(registry, "hooks", {}).values():
        group = getattr(hook, "group", None)
        if hasattr(group, "cpu_param_dict"):
            yield group
