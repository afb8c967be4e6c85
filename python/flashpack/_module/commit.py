"""The step that changes the model: everything new is built first, then put in place at once."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from .._core import ops
from .._core.names import clipped, quoted
from .._core.tensors import bump_versions, has_memory, is_uninitialized, rebuild, shown_memory, swapped
from .aliases import is_injective, overlapping
from .devices import Held, refresh_groups
from .dtensors import is_dtensor, local_of
from .dtensors import rebuild as rebuild_dtensor
from .match import Match
from .slots import Slot, call_post_hooks, children_first


@dataclass
class _Changes:
    """`live[i]` is to take over `values[i]`'s storage; `replaced` maps an old tensor's id to its heir;
    `filled` pairs memory that stays with what goes into it: of DTensors, and what others show in part."""

    live: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    filled: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    replaced: dict[int, Tensor] = field(default_factory=dict)


def commit_to(
    model: nn.Module,
    path: str,
    match: Match,
    tensors: Mapping[str, Tensor],
    slots: Collection[Slot],
    held: Mapping[str, Held],
) -> None:
    """Put `tensors`, loaded from `path`, in their paired places, and call the model's hooks.

    `slots` are all of the model's, so that ties follow along. Those of the names in `held` go where the
    model's weights wait. Raises ValueError, with nothing changed, for a tensor that shares a part of its
    memory with another one and cannot be filled in place.
    """
    # Clones and parameters made in inference mode could never be trained.
    with torch.inference_mode(False), torch.no_grad():
        paired = {name: slot for name, slot in match.slots.items() if name not in held}
        changes = _prepare(path, paired, tensors, slots)
    for memory, value in changes.filled:
        with torch.inference_mode(memory.is_inference()), torch.no_grad():
            memory.copy_(value)
    if changes.live:
        ops.set_data(changes.live, changes.values)
        bump_versions(changes.live)
    _replace(slots, changes.replaced)
    for name, slot in match.slots.items():
        if name in held:
            slot.put(held[name].replace(slot, tensors[name].cpu()))
    refresh_groups(model, {id(slot.tensor): slot.tensor for slot in match.slots.values()})
    call_post_hooks(children_first(model), match.incompatible)


def _replace(slots: Iterable[Slot], replaced: Mapping[int, Tensor]) -> None:
    """Put the heirs in their slots; a meta parameter turns into its heir and stays the same object."""
    placed: dict[int, Tensor] = {}
    for slot in slots:
        heir = replaced.get(id(slot.tensor))
        if heir is None:
            continue
        if id(heir) not in placed:
            placed[id(heir)] = slot.tensor if _turned_into(slot.tensor, heir) else heir
        slot.put(placed[id(heir)])


def _turned_into(old: Tensor, heir: Tensor) -> bool:
    """Swap a meta parameter with its heir, unless weak references or a graph hold on to it."""
    return (
        isinstance(old, nn.Parameter)
        and old.is_meta
        and type(old) is type(heir)
        and not is_dtensor(old)
        and swapped(old, heir)
    )


def _prepare(
    path: str, paired: Mapping[str, Slot], tensors: Mapping[str, Tensor], slots: Iterable[Slot]
) -> _Changes:
    changes = _Changes()
    shared = _SharedRanges()
    showing: dict[Hashable, dict[int, Slot]] = {}  # by memory, the tensors that show it, each once
    for slot in slots:
        showing.setdefault(shown_memory(slot.tensor), {})[id(slot.tensor)] = slot
    first_of = {key: next(iter(tied.values())).tensor for key, tied in showing.items()}
    clusters = overlapping({key: tensor for key, tensor in first_of.items() if has_memory(tensor)})
    in_part = set(itertools.chain.from_iterable(clusters))
    for key, name in _last_names(paired).items():
        slot, value = paired[name], tensors[name]
        old = slot.tensor
        if is_dtensor(old):  # of which `value` is this rank's part
            if old.is_meta:
                changes.replaced[id(old)] = rebuild_dtensor(old, value)
            else:  # FSDP keeps views of the memory
                changes.filled.append((local_of(old), value))
        elif key in in_part:
            changes.filled.append((old, _fillable(path, slot, value)))
        else:
            _give(showing[key].values(), value, shared, changes)
    return changes


def _last_names(paired: Mapping[str, Slot]) -> dict[Hashable, str]:
    """The last name of each memory, which wins, in the order of these names."""
    names: dict[Hashable, str] = {}
    for name, slot in paired.items():
        key = shown_memory(slot.tensor)
        names.pop(key, None)
        names[key] = name
    return names


def _give(slots: Collection[Slot], value: Tensor, shared: _SharedRanges, changes: _Changes) -> None:
    """Note that the tensors of `slots`, which show one memory, are to show `value`."""
    own: Tensor | None = None
    for slot in slots:
        old = slot.tensor
        if slot.is_parameter and old.is_meta:
            changes.replaced[id(old)] = shared.parameter(cast(nn.Parameter, old), value)
            continue
        own = shared.own(value) if own is None else own
        shown = own.view(old.shape) if len(slots) > 1 else own
        if _can_set_data(old, shown):
            changes.live.append(old)
            changes.values.append(shown)
        else:
            changes.replaced[id(old)] = (
                rebuild(cast(nn.Parameter, old), shown) if slot.is_parameter else shown
            )


def _fillable(path: str, slot: Slot, value: Tensor) -> Tensor:
    """`value`, which is copied into memory that other tensors share in part."""
    old, what = slot.tensor, f"Error while assigning from {clipped(path)}: record {quoted(slot.name)}"
    if not is_injective(old):
        raise ValueError(
            f"{what} cannot be assigned: elements of the model's tensor share memory; clone the tensor first"
        )
    if (value.dtype, value.device) != (old.dtype, old.device):
        raise ValueError(
            f"{what} is {value.dtype} on {value.device}, but the model's tensor, which shares a part of its "
            f"memory with another one, is {old.dtype} on {old.device}: load with "
            f'dtype="model" to {old.device}'
        )
    return value


def _can_set_data(old: Tensor, value: Tensor) -> bool:
    """Whether the storage can be swapped in place: not for meta, lazy, inference or conjugated tensors."""
    return (
        not is_uninitialized(old)
        and not (old.is_inference() or old.is_conj() or old.is_neg())
        and torch._has_compatible_shallow_copy_type(old, value)
    )


class _SharedRanges:
    """Hands out values such that two tensors share memory only where the model means them to.

    Records of one range are one tied weight. Distinct parameters on the meta device become one parameter
    again, which mends the ties that an initialisation on meta broke. Distinct live tensors each
    get memory of their own, so that training one does not change the other.
    """

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._parameters: dict[tuple[object, ...], nn.Parameter] = {}

    def own(self, value: Tensor) -> Tensor:
        """`value`, or a copy when its memory went to another tensor before."""
        if value.numel() == 0:
            return value
        if value.data_ptr() in self._taken:
            return value.clone()
        self._taken.add(value.data_ptr())
        return value

    def parameter(self, old: nn.Parameter, value: Tensor) -> nn.Parameter:
        """`old`, on the meta device, made anew around `value`, or the one made from the same range before."""
        if value.numel() == 0:
            return rebuild(old, value)
        key = (value.data_ptr(), value.shape, value.dtype, type(old), old.requires_grad)
        if key not in self._parameters:
            self._parameters[key] = rebuild(old, self.own(value))
        return self._parameters[key]
