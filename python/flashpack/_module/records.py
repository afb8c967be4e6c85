"""Records that are in memory before their model knows what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .._core.names import filter_state_dict, listed, warn
from .._files.opened import OpenModel
from .._load.cast import cast
from .._load.load import Reading, load_tensors
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
    commit_to(model, path, match, tensors, slots.values(), {})
    return match


def match_own_way(
    shown: str,
    roots: Mapping[str, nn.Module],
    slots: dict[str, Slot],
    records: Mapping[str, Tensor],
    device: torch.device,
    options: LoadOptions,
) -> tuple[Match, dict[str, Tensor]]:
    """What goes where once the modules at `roots` have told what becomes of their records.

    `slots` are changed where modules have tied them.
    """
    strict = options.demands_params and not any(options.ignore.values())
    found = rehearse(roots, records, device, shown, strict)
    slots.update(found.tied)
    try:
        open_slots = {name: slot for name, slot in slots.items() if name not in found.settled}
        match = match_tensors(found.tensors, open_slots, options, shown)
        missing = {name: of for name, of in found.missing.items() if not options.ignores(name)}
        match.missing.extend(missing)
        demanded = {True: options.demands_params, False: options.demands_buffers}
        if lacking := [name for name, is_parameter in missing.items() if demanded[is_parameter]]:
            raise ValueError(f"{shown}: Missing {len(lacking)} names: {listed(lacking)}")
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


def hand_over(model: nn.Module, weights: OpenModel, options: LoadOptions) -> Match:
    """Load FSDP1's flat parameters, of which no tensor of the model is one record's.

    Raises ValueError, with nothing changed, for what they do not take.
    """
    if options.keep_flash_ref_on_model:
        raise ValueError(f"{weights.shown}: keep_flash_ref_on_model=True: FSDP1 copies what it loads")
    if isinstance(options.dtype, torch.dtype):
        raise ValueError(f"{weights.shown}: dtype={options.dtype}: FSDP1 keeps the dtypes of the model")
    reading: Reading = {"eager": options.eager, "verify": options.verify}
    records = load_tensors(weights, torch.device("cpu"), ignore=options.ignore, **reading)
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]  # of the flat ones, this rank's part
    try:
        keys = model.load_state_dict(dict(records), strict=options.demands_params)
    except RuntimeError as error:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        told = str(error).replace("_fsdp_wrapped_module.", "")[:2000]
        raise ValueError(f"Error while assigning from {weights.shown}: {told}") from error
    kept = {tensor.dtype for tensor in tensors}
    others = {record.dtype for record in records.values() if record.is_floating_point()} - kept
    if options.dtype == "file" and others:
        what = ", ".join(sorted(map(str, others)))
        warn(f"{weights.shown}: FSDP1 keeps the dtypes of the model: {what} was cast")
    return Match({}, list(keys.unexpected_keys), list(keys.missing_keys))
