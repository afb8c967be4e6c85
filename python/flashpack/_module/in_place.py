"""Loading into the memory that a model's tensors have already."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .._core import ops
from .._core.names import clipped, listed, quoted
from .._core.progress import Silent
from .._core.tensors import bump_versions, is_on, is_uninitialized, shown_memory
from .._files.opened import OpenModel
from .._load.cast import cast_parts, part_of
from .._load.load import Reading, load_tensors, run_load
from .._load.options import LoadOptions
from .aliases import is_injective, overlapping
from .dtensors import is_dtensor
from .match import Match, check_ties, dtypes_of


def fill(
    shown: str,
    match: Match,
    mapped: Mapping[str, Tensor],
    device: torch.device,
    options: LoadOptions,
    source: OpenModel | Mapping[str, Tensor],
) -> None:
    """Put the matched records into their tensors' memory: load them, or copy what was loaded before.

    Raises ValueError, before anything changes, for memory that cannot take its record: on another device, of
    another dtype, not there, or shared with what has another record.
    """
    targets = _targets(clipped(shown, 500), match, mapped, device, options)
    direct = {
        name: tensor
        for name, tensor in targets.items()
        if isinstance(source, OpenModel) and mapped[name].dtype == tensor.dtype and _takes_bytes(tensor)
    }
    copied = {name: tensor for name, tensor in targets.items() if name not in direct}
    whole, first = (sum(tensor.nbytes for tensor in each.values()) for each in (targets, copied))
    try:
        if isinstance(source, OpenModel):
            if copied:
                _copy(source, copied, device, options.verify, part_of(options.shown, 0, first, whole))
            model, names, tensors = source, list(direct), list(direct.values())
            reading: Reading = {
                "eager": True,
                "verify": options.verify,
                "silent": part_of(options.shown, first, whole - first, whole),
            }
            run_load(lambda how: ops.fill(model.handle, names, tensors, **how), model, device, reading)
        else:
            _put(copied, source)
    finally:  # also half a load
        bump_versions(list(targets.values()))


def _targets(
    shown: str, match: Match, mapped: Mapping[str, Tensor], device: torch.device, options: LoadOptions
) -> dict[str, Tensor]:
    """The tensors to fill, one of those that are the same memory, if each can take its record."""
    if options.keep_flash_ref_on_model:
        raise ValueError("in_place=True makes no storage that keep_flash_ref_on_model could keep")
    dtypes = dtypes_of(match.slots, mapped, options)
    for name, slot in match.slots.items():
        reason = _refusal(slot.tensor, dtypes[name], device)
        if reason is not None:
            raise ValueError(f"{shown}: in_place=True cannot fill {quoted(name)}: {reason}")
    last = {shown_memory(slot.tensor): name for name, slot in match.slots.items()}
    targets = {name: match.slots[name].tensor.detach() for name in last.values()}
    if names := next(overlapping(targets), None):
        raise ValueError(
            f"{shown}: in_place=True cannot fill {listed(names)}: they share memory in part, so that one "
            "would overwrite the other"
        )
    check_ties(shown, match.slots, mapped, options)
    return targets


def _copy(
    weights: OpenModel,
    targets: Mapping[str, Tensor],
    device: torch.device,
    verify: bool | None,
    silent: Silent,
) -> None:
    """Fill what does not take the file's bytes as they are: channels_last and the like, and other dtypes."""

    def load(names: list[str], silent: Silent) -> dict[str, Tensor]:
        return load_tensors(weights, device, names=names, eager=True, verify=verify, silent=silent)

    dtypes = {name: tensor.dtype for name, tensor in targets.items()}
    for part in cast_parts(load, weights.footer, dtypes, silent):
        _put(targets, part)


def _put(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.inference_mode():  # in which alone inference tensors can be written, and others can be, too
        for name in targets.keys() & values.keys():
            targets[name].copy_(values[name])


def _refusal(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a tensor's memory cannot take a record that is of `dtype` by then; None if it can."""
    if is_dtensor(tensor):
        return "it is a DTensor, which is filled in place without in_place"
    if is_uninitialized(tensor):
        return "it belongs to a lazy module and has no memory yet"
    if not is_on(tensor, device):
        return f"the record is for {device}, but the model's tensor is on {tensor.device}; nothing is moved"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"its layout is {'nested' if tensor.is_nested else tensor.layout}, not dense"
    if tensor.dtype != dtype:
        return f'the record is {dtype}, but the model\'s tensor is {tensor.dtype} (dtype="model" casts)'
    if tensor.numel() and tensor.untyped_storage().nbytes() == 0:
        return "its storage was freed"
    if not is_injective(tensor):
        return "several of its elements share memory, as those of an expanded tensor do"
    return None


def _takes_bytes(tensor: Tensor) -> bool:
    """Whether the file's bytes can go into the tensor's memory as they are."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
