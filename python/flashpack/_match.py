"""Which record goes to which place of the model; every reason to refuse is found here, before any change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ._dtensors import is_dtensor
from ._errors import FlashPackError
from ._options import LoadOptions
from ._slots import Slot


@dataclass(frozen=True)
class Match:
    """`slots`: the place of each record; the names of the file that the model lacks; and
    the model's names that the file lacks, though neither ignored nor tied to one that it has."""

    slots: dict[str, Slot]
    discarded: list[str]
    missing: list[str]


def match_tensors(
    tensors: Mapping[str, Tensor], slots: Mapping[str, Slot], options: LoadOptions, path: str
) -> Match:
    """Pair the file's tensors with the model's. Raises ValueError for whatever does not fit."""
    paired = {name: slots[name] for name in tensors if name in slots}
    discarded = [name for name in tensors if name not in slots]
    missing = _missing(paired, slots, options)
    check_names(discarded, missing, options)
    check_fit(paired, tensors, options, path)
    return Match(paired, discarded, [slot.name for slot in missing])


def check_fit(
    paired: Mapping[str, Slot], tensors: Mapping[str, Tensor], options: LoadOptions, path: str
) -> None:
    """Raise ValueError unless every tensor can take the place it is paired with."""
    tied_dtypes: dict[int, torch.dtype] = {}
    for name, slot in paired.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise FlashPackError(f"{path}: the file was replaced while it was loaded: {name!r} is gone")
        reason = _misfit(slot, tensor, options)
        first = tied_dtypes.setdefault(id(slot.tensor), tensor.dtype)
        if reason is None and first != tensor.dtype:
            reason = f"is {tensor.dtype}, but a name tied to it in the model is {first}"
        if reason is not None:
            raise ValueError(f"{path}: record {name!r} {reason}")


def check_dtypes(
    path: str, names: Iterable[str], expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Raise FlashPackError where a part that was loaded is of another dtype than its whole was."""
    for name in names:
        if tensors[name].dtype != expected[name].dtype:
            raise FlashPackError(f"{path}: the file was replaced while it was loaded: {name!r} is another")


def _misfit(slot: Slot, tensor: Tensor, options: LoadOptions) -> str | None:
    if not slot.takes_shape(tensor.shape):
        return f"has shape {list(tensor.shape)}, but the model's tensor has shape {list(slot.tensor.shape)}"
    if slot.is_opaque:
        return f"cannot be assigned: the model's tensor is a {type(slot.tensor).__name__} without plain data"
    if is_dtensor(slot.tensor) and not slot.tensor.is_meta and slot.tensor.dtype != tensor.dtype:
        return f"is {tensor.dtype}, but the model's DTensor, which is filled in place, is {slot.tensor.dtype}"
    if slot.is_parameter:
        if slot.tensor.requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
            return f"is {tensor.dtype}, but the model's parameter requires a gradient"
    elif slot.tensor.dtype != tensor.dtype and not options.coerce_dtype:
        return (
            f"is {tensor.dtype}, but the model's buffer is {slot.tensor.dtype}: "
            "dtype mismatch (coerce_dtype=True casts buffers)"
        )
    return None


def _missing(paired: Mapping[str, Slot], slots: Mapping[str, Slot], options: LoadOptions) -> list[Slot]:
    """Slots without a record, in model order; non-persistent buffers are never expected in a file."""
    held = {id(slot.tensor) for slot in paired.values()}
    return [
        slot
        for name, slot in slots.items()
        if id(slot.tensor) not in held and slot.persistent and not options.ignores(name)
    ]


def check_names(discarded: list[str], missing: list[Slot], options: LoadOptions) -> None:
    if discarded and options.refuses_unknown_names:
        raise ValueError(f"Could not assign {len(discarded)} names: {discarded}")
    params = [slot.name for slot in missing if slot.is_parameter and options.demands_params]
    buffers = [slot.name for slot in missing if not slot.is_parameter and options.demands_buffers]
    if params and buffers:
        raise ValueError(f"Missing {len(params)} parameters and {len(buffers)} buffers: {params} {buffers}")
    if params:
        raise ValueError(f"Missing {len(params)} parameters: {params}")
    if buffers:
        raise ValueError(f"Missing {len(buffers)} buffers: {buffers}")
