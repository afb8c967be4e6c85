"""Records that are in memory before their model knows what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .._core.hints import listed
from .._core.names import filter_state_dict
from .._load.cast import cast
from .._load.options import LoadOptions
from .commit import commit_to
from .in_place import fill
from .match import Match, check_ties, dtypes_of, match_tensors
from .own_way import own_roots, rehearse
from .slots import Slot, find_slots


def assign_records(
    model: nn.Module, records: Mapping[str, Tensor], path: str, options: LoadOptions, device: torch.device
) -> Match:
    """`assign` with records that were loaded from `path` before, to `device`."""
    wanted = filter_state_dict(records, **options.ignore)
    slots = find_slots(model)
    if roots := own_roots(model, wanted):
        match, tensors = match_own_way(path, roots, slots, wanted, device, options)
    else:
        match = match_tensors(wanted, slots, options, path)
        check_ties(path, match.slots, wanted, options)
        tensors = cast(wanted, dtypes_of(match.slots, wanted, options))
    commit_to(model, match, tensors, slots.values(), {})
    return match


def match_own_way(
    shown: str,
    roots: Mapping[str, nn.Module],
    slots: Mapping[str, Slot],
    records: Mapping[str, Tensor],
    device: torch.device,
    options: LoadOptions,
) -> tuple[Match, dict[str, Tensor]]:
    """What goes where once the modules at `roots` have told what becomes of their records."""
    found = rehearse(roots, records, device, shown)
    try:
        open_slots = {name: slot for name, slot in slots.items() if name not in found.settled}
        match = match_tensors(found.tensors, open_slots, options, shown)
        match.missing.extend(name for name in found.missing if not options.ignores(name))
        if found.missing and options.demands_buffers:
            raise ValueError(f"{shown}: Missing extra state: {listed(found.missing)}")
        if options.in_place:
            if found.reshaped:
                names = [slot.name for slot, _ in found.reshaped]
                raise ValueError(
                    f"{shown}: in_place=True cannot fill {listed(names)}: the records' shapes differ"
                )
            fill(shown, match, found.tensors, device, options, found.tensors)
            tensors = found.tensors
        else:
            tensors = cast(found.tensors, dtypes_of(match.slots, found.tensors, options))
            check_ties(shown, match.slots, tensors, options)
    except BaseException:
        found.undo()
        raise
    found.finish()
    return match, tensors
