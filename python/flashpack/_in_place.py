"""Loading into the memory that a model's tensors have already."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ._dtensors import is_dtensor
from ._load import load_into, load_tensors
from ._match import Match
from ._options import LoadOptions
from ._sources import shown_path
from ._usual import bump_versions, is_on


def fill(
    path: str, match: Match, mapped: Mapping[str, Tensor], device: torch.device, options: LoadOptions
) -> None:
    """Load the matched records into their tensors' memory.

    Raises ValueError, before anything changes, where that cannot take the record: on another device, of
    another dtype.
    """
    if options.keep_flash_ref_on_model:
        raise ValueError("in_place=True makes no storage that keep_flash_ref_on_model could keep")
    last: dict[int, str] = {}  # a tied tensor is filled once, under its last name
    shown = shown_path(path)
    for name, slot in match.slots.items():
        tensor = slot.tensor
        if is_dtensor(tensor):
            raise ValueError(
                f"{shown}: the model's {name!r} is a DTensor, which is filled in place without in_place"
            )
        if not is_on(tensor, device):
            raise ValueError(
                f"{shown}: record {name!r} is for {device}, but the model's tensor is on {tensor.device}: "
                "in_place=True moves nothing"
            )
        if tensor.dtype != mapped[name].dtype:
            raise ValueError(
                f"{shown}: record {name!r} is {mapped[name].dtype}, but the model's tensor is "
                f"{tensor.dtype}: in_place=True casts nothing"
            )
        last[id(tensor)] = name
    targets = {name: match.slots[name].tensor.detach() for name in last.values()}
    direct = {name: tensor for name, tensor in targets.items() if tensor.is_contiguous()}
    try:
        load_into(path, direct, verify=options.verify, silent=options.shown)
    finally:  # also half a load
        bump_versions(list(direct.values()))
    strided = [name for name in targets if name not in direct]
    if strided:  # channels_last and the like: through a row-major copy
        loaded = load_tensors(
            path, targets[strided[0]].device, names=strided, eager=True, verify=options.verify, silent=True
        )
        for name in strided:
            targets[name].copy_(loaded[name])
