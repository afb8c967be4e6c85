"""Loading into the memory that a model's tensors have already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ._dtensors import is_dtensor
from ._load import load_all_into, load_into, load_tensors
from ._match import Match
from ._options import LoadOptions
from ._slots import Slot
from ._sources import shown_path
from ._tensors import PLAIN_TYPES


def fill_all(
    path: str, slots: Mapping[str, Slot], device: torch.device, options: LoadOptions
) -> Match | None:
    """Load the file into the model if each of its records fits a tensor of its own and none is left over.

    That is nearly always so, and is found out natively, at a tenth of what `fill` takes. Else None: nothing
    has changed, and matching the names one by one tells what does not fit.
    """
    paired = {name: slot for name, slot in slots.items() if slot.is_parameter or slot.persistent}
    targets = {name: slot.tensor for name, slot in paired.items()}
    first = next(iter(targets.values()), None)
    if (
        first is None
        or not _is_on(first, device)
        or options.keep_flash_ref_on_model
        or any(options.ignore.values())
        or len({id(tensor) for tensor in targets.values()}) < len(targets)  # tied, perhaps only here
        or not all(type(tensor) in PLAIN_TYPES for tensor in targets.values())
    ):
        return None
    try:
        filled = load_all_into(path, targets, verify=options.verify, silent=options.shown)
    except BaseException:  # perhaps halfway
        _bump(targets.values())
        raise
    if not filled:
        return None
    _bump(targets.values())
    return Match(paired, discarded=[], missing=[])


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _bump(tensors: Iterable[Tensor]) -> None:
    """A backward pass that saved the old values must notice that they are gone."""
    torch.autograd.graph.increment_version([each for each in tensors if not each.is_inference()])


def fill(
    path: str, match: Match, mapped: Mapping[str, Tensor], device: torch.device, options: LoadOptions
) -> None:
    """Load the matched records into their tensors' memory.

    Raises ValueError, before anything changes, where that cannot take the record: on another device, of
    another dtype.
    """
    if options.keep_flash_ref_on_model:
        raise ValueError("in_place=True makes no storage that keep_flash_ref_on_model could keep")
    targets: dict[str, Tensor] = {}
    shown = shown_path(path)
    seen: set[int] = set()
    for name, slot in match.slots.items():
        tensor = slot.tensor
        if is_dtensor(tensor):
            raise ValueError(
                f"{shown}: the model's {name!r} is a DTensor, which is filled in place without in_place"
            )
        if not _is_on(tensor, device):
            raise ValueError(
                f"{shown}: record {name!r} is for {device}, but the model's tensor is on {tensor.device}: "
                "in_place=True moves nothing"
            )
        if tensor.dtype != mapped[name].dtype:
            raise ValueError(
                f"{shown}: record {name!r} is {mapped[name].dtype}, but the model's tensor is "
                f"{tensor.dtype}: in_place=True casts nothing"
            )
        if id(tensor) not in seen:  # a tied tensor is filled once, under its first name
            seen.add(id(tensor))
            targets[name] = tensor.detach()
    direct = {name: tensor for name, tensor in targets.items() if tensor.is_contiguous()}
    try:
        load_into(path, direct, verify=options.verify, silent=options.shown)
    finally:  # also half a load
        _bump(direct.values())
    strided = [name for name in targets if name not in direct]
    if strided:  # channels_last and the like: through a row-major copy
        loaded = load_tensors(
            path, targets[strided[0]].device, names=strided, eager=True, verify=options.verify, silent=True
        )
        for name in strided:
            targets[name].copy_(loaded[name])
