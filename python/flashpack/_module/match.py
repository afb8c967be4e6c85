"""Which record goes to which place of the model; every reason to refuse is found here, before any change."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys

from .._core.dtypes import is_castable
from .._core.names import clipped, listed, naming_hint, quoted, warn
from .._core.tensors import has_memory, shown_memory
from .._load.options import LoadOptions
from .aliases import is_injective, overlapping, overwritten
from .dtensors import is_dtensor
from .slots import Slot

IncompatibleKeys = _IncompatibleKeys  # what load_state_dict returns


@dataclass(frozen=True)
class Match:
    """`slots`: the place of each record, in the model's order; the names of the file that the model lacks;
    and the model's names that the file lacks, though neither ignored nor tied to one that it has."""

    slots: dict[str, Slot]
    discarded: list[str]
    missing: list[str]

    @property
    def incompatible(self) -> IncompatibleKeys:
        """The names without a counterpart."""
        return IncompatibleKeys(self.missing, self.discarded)


def match_tensors(
    tensors: Mapping[str, Tensor], slots: Mapping[str, Slot], options: LoadOptions, path: str
) -> Match:
    """Pair the file's tensors with the model's. Raises ValueError for whatever does not fit."""
    paired = {name: slot for name, slot in slots.items() if name in tensors}
    discarded = [name for name in tensors if name not in slots]
    missing = _missing(paired, slots, options)
    check_names(path, discarded, missing, options)
    misfits = [
        (name, reason)
        for name, slot in paired.items()
        if (reason := _misfit(slot, tensors[name], options)) is not None
    ]
    if misfits:
        name, reason = misfits[0]
        more = f" ({len(misfits) - 1} more records do not fit either)" if misfits[1:] else ""
        raise ValueError(f"Error while assigning from {clipped(path)}: record {quoted(name)} {reason}{more}")
    return Match(paired, discarded, [slot.name for slot in missing])


def check_ties(
    path: str, paired: Mapping[str, Slot], tensors: Mapping[str, Tensor], options: LoadOptions
) -> None:
    """Compare the records of names whose tensors in the model are one, or show the same memory.

    Raises ValueError for two that are not the same, or warns if the options are lenient: the last one in the
    model's order is taken then, as by `load_state_dict`.
    """
    names_of: dict[Hashable, list[str]] = {}
    for name, slot in paired.items():
        names_of.setdefault(shown_memory(slot.tensor), []).append(name)
    for reason in (*_differing(names_of.values(), tensors), *_overwritten(paired, tensors)):
        if options.refuses_unknown_names:
            raise ValueError(f"Error while assigning from {clipped(path)}: {reason}")
        warn(f"{clipped(path)}: {reason}: the last one is taken")


def _differing(groups: Iterable[Sequence[str]], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with records of one tensor that are not the same."""
    for first, *others in groups:
        if differing := [name for name in others if not is_same(tensors[first], tensors[name])]:
            yield (
                f"the model has one tensor under the names {listed([first, *others])}, but the file has "
                f"different values for {quoted(first)} and {listed(differing)}"
            )


def _overwritten(paired: Mapping[str, Slot], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with records of tensors that share a part of their memory, and are not the same there."""
    live = {name: slot.tensor for name, slot in paired.items() if has_memory(slot.tensor)}
    whole = {shown_memory(tensor): name for name, tensor in live.items()}
    for names in map(set, overlapping({name: live[name] for name in whole.values()})):
        cluster = {name: tensor for name, tensor in live.items() if name in names}
        if all(map(is_injective, cluster.values())) and (lost := overwritten(cluster, tensors)):
            yield (
                f"the tensors {listed([*cluster])} of the model share a part of their memory, but the file "
                f"has different values there, which would overwrite some of {listed(lost)}"
            )


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, bit for bit."""
    if (one.numel(), one.dtype) != (other.numel(), other.dtype):
        return False
    if one.data_ptr() == other.data_ptr():
        return True
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def dtypes_of(
    paired: Mapping[str, Slot], tensors: Mapping[str, Tensor], options: LoadOptions
) -> dict[str, torch.dtype]:
    """The dtype that each of the tensors has in the model once it is loaded, in the tensors' order."""
    return {
        name: _dtype_of(paired[name], tensor.dtype, options)
        for name, tensor in tensors.items()
        if name in paired
    }


def _dtype_of(slot: Slot, dtype: torch.dtype, options: LoadOptions) -> torch.dtype:
    if options.coerce_dtype and not slot.is_parameter:
        return slot.tensor.dtype
    wanted = slot.tensor.dtype if options.dtype == "model" else options.dtype
    if isinstance(wanted, torch.dtype) and is_castable(wanted) and is_castable(dtype):
        return wanted
    return dtype


def _misfit(slot: Slot, tensor: Tensor, options: LoadOptions) -> str | None:
    own, dtype = slot.tensor.dtype, _dtype_of(slot, tensor.dtype, options)
    if not slot.takes_shape(tensor.shape):
        return f"has shape {list(tensor.shape)}, but the model's tensor has shape {list(slot.tensor.shape)}"
    if slot.is_opaque:
        return f"cannot be assigned: the model's tensor is a {type(slot.tensor).__name__} without plain data"
    if is_dtensor(slot.tensor) and not slot.tensor.is_meta and own != dtype:
        return f"is {dtype}, but the model's DTensor, which is filled in place, is {own}"
    if slot.is_parameter and slot.tensor.requires_grad and not (dtype.is_floating_point or dtype.is_complex):
        return f"is {dtype}, but the model's parameter requires a gradient"
    if own != dtype and options.dtype == "model":
        return (
            f'is {dtype}, but the model\'s tensor is {own}: dtype mismatch (dtype="model" casts floats alone)'
        )
    if own != dtype and not slot.is_parameter and dtype != options.dtype:
        return (
            f"is {dtype}, but the model's buffer is {own}: dtype mismatch (coerce_dtype=True casts buffers)"
        )
    return None


def _missing(paired: Mapping[str, Slot], slots: Mapping[str, Slot], options: LoadOptions) -> list[Slot]:
    """Slots without a record, in model order; non-persistent buffers are never expected in a file."""
    held = {shown_memory(slot.tensor) for slot in paired.values()}
    return [
        slot
        for name, slot in slots.items()
        if shown_memory(slot.tensor) not in held and slot.persistent and not options.ignores(name)
    ]


def check_names(path: str, discarded: Sequence[str], missing: Sequence[Slot], options: LoadOptions) -> None:
    """Raise ValueError for names without a counterpart, as strict as the options are."""
    params = [slot.name for slot in missing if slot.is_parameter and options.demands_params]
    buffers = [slot.name for slot in missing if not slot.is_parameter and options.demands_buffers]
    lacking = {kind: names for kind, names in (("parameters", params), ("buffers", buffers)) if names}
    faults = []
    if lacking:
        counts = " and ".join(f"{len(names)} {kind}" for kind, names in lacking.items())
        faults.append(f"Missing {counts}: {' '.join(map(listed, lacking.values()))}")
    if discarded and options.refuses_unknown_names:
        faults.append(f"Could not assign {len(discarded)} names: {listed(discarded)}")
    if faults:
        hint = naming_hint(discarded, [slot.name for slot in missing])
        raise ValueError(f"{clipped(path)}: {'; '.join(faults)}" + (f"; {hint}" if hint else ""))
