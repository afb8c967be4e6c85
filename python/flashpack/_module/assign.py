"""assign_from_file: check the whole file against the model, load, then commit in one step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._core.hints import listed, warn
from .._core.index import unverified_note
from .._core.names import filter_state_dict
from .._core.progress import Silent
from .._core.text import human_num_elements, say
from .._files.opened import OpenModel
from .._files.sources import ModelPath, model_path
from .._load.cast import cast, load_cast, part_of
from .._load.load import as_device, load_tensors
from .._load.options import LoadOptions
from .._load.storage import FlashTensorStorage, iterate_from_flash_tensor, read_blocks
from .._ranks.group import world_size_of
from .._ranks.load import SharedFile, load_together
from ..constants import DEFAULT_CHUNK_BYTES, DEFAULT_NUM_STREAMS
from .commit import commit
from .dtensors import is_dtensor, load_local
from .fast_path import assign_fast
from .in_place import fill
from .match import IncompatibleKeys, Match, check_ties, dtypes_of, match_tensors
from .offloaded import find_held, refresh_groups, refuse_to_move
from .own_way import (
    call_post_hooks,
    children_first,
    hand_over,
    loads_flat,
    own_roots,
    rehearse,
    settle_groups,
)
from .plans import note_own_blocks
from .slots import Slot, find_slots, find_tensors


def assign_from_file(
    model: nn.Module,
    path: ModelPath,
    device: str | torch.device | None = None,
    strict: bool | None = None,
    strict_params: bool = True,
    strict_buffers: bool = False,
    keep_flash_ref_on_model: bool = False,
    silent: bool = True,
    num_streams: int = DEFAULT_NUM_STREAMS,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    ignore_names: list[str] | None = None,
    ignore_prefixes: list[str] | None = None,
    ignore_suffixes: list[str] | None = None,
    use_distributed_loading: bool = False,
    distributed_sharded: bool = False,
    distributed_shard_strategy: str | None = None,
    rank: int | None = None,
    local_rank: int | None = None,
    world_size: int | None = None,
    coerce_dtype: bool = False,
    *,
    eager: bool | None = None,
    verify: bool | None = None,
    in_place: bool = False,
    progress: Callable[[int, int], None] | None = None,
    dtype: torch.dtype | str = "file",
) -> IncompatibleKeys:
    """Give `model` the weights of a file, or of several, that `load_file` takes, by their names.

    Live tensors keep their identity, requires_grad and optimizer references; parameters take the file's
    dtype, unless `dtype` says otherwise. Meta tensors are materialized and stay tied. Parameters keep their
    identity unless a weak reference or an autograd graph points at them; buffers are replaced. Nothing
    changes unless everything fits.

    Returns the names that the file lacks and those that the model lacks, as `load_state_dict` does. Not
    missing is what is ignored, or tied to a name that the file has; not unexpected is a non-persistent
    buffer: it is filled.

    `device`: default is the model's own, meta counting as cpu; each tensor of a model that lies on several
    devices, as accelerate's `dispatch_model` spreads it, stays on its own.

    `strict` overrides `strict_params` and `strict_buffers`: whether a parameter or a persistent buffer that
    the file lacks is an error. Unless both are lenient, so is a name that the model lacks, and so are
    different values for one tied tensor (else a warning; the last of its names counts). `coerce_dtype` casts
    buffers to the model's dtype instead of refusing.

    `dtype`: "file"; "model" to keep the dtypes of the model, as `load_state_dict` does; or a torch dtype, or
    its name, for all parameters and buffers. Floating tensors alone are cast, while they are loaded.
    `keep_flash_ref_on_model` leaves the blocks and the footer on the model as `_flash_shared_storage` and
    `_flash_shared_storage_meta`. The tensors then share the blocks' storages, as on CUDA they always do, and
    diffusers' `save_pretrained(max_shard_size=...)` writes them as one shard: use
    `save_pretrained_flashpack(max_shard_size=...)`, or clone them first.
    `eager`, `verify` and `progress` as in `load_file`.

    `in_place=True` fills the memory that the model's tensors have already: every data_ptr stays, as CUDA
    graphs and hot swaps of weights need, and no second copy of the model is made. Shapes and, unless `dtype`
    casts, dtypes must be the file's. Bytes go straight to the model, so a read that fails halfway leaves it
    with some of them; whatever can be checked is checked before the first byte.

    DTensors (of `fully_shard`, `parallelize_module` and the like) get this rank's part, and only that is
    read; those in memory are filled in place and must have the dtype that is loaded.

    `use_distributed_loading=True`, called by every rank of torch.distributed (which is initialized as
    torchrun's variables say if need be): the file is read once in all, by rank 0, or with
    `distributed_sharded=True` by each rank a share, as in `read_flashpack_file_distributed`.

    Raises ValueError for names, shapes or dtypes that do not fit, FlashPackError or ChecksumError for an
    unsound file, OSError for one that cannot be read; with several ranks on all of them, and RuntimeError
    when one is lost.
    """
    match = _assign(model, path, LoadOptions.pick(locals()))
    return match.incompatible if isinstance(match, Match) else match


def assign(model: nn.Module, source: ModelPath | OpenModel, options: LoadOptions) -> Match:
    """`assign_from_file` with the options as one value; returns what went where."""
    match = _assign(model, source, options)
    return match if isinstance(match, Match) else _all_but(model, match)


def _assign(
    model: nn.Module, source: ModelPath | OpenModel, options: LoadOptions
) -> Match | IncompatibleKeys:
    """`assign`; of the fast path the names that are left over, as to pair the others takes time."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, not {type(model).__name__}")
    device = _device_of(model, options)
    if options.use_distributed_loading and world_size_of(options.world_size) > 1:
        path = source.path if isinstance(source, OpenModel) else source
        return _assign_together(model, path, device, options)
    weights = source if isinstance(source, OpenModel) else OpenModel(model_path(source))
    if (incompatible := assign_fast(model, weights, device, options)) is not None:
        if not options.silent and not options.in_place:
            tensors = dict(zip(*find_tensors(model)[:2], strict=True))
            _report(_all_but(model, incompatible), tensors, weights)
        return incompatible
    if loads_flat(model):
        return _hand_over(model, weights, options)
    note_own_blocks(model)
    settle_groups(model)
    slots, held = find_slots(model), find_held(model)
    places = _places(model, slots, held, device, options)
    match, tensors, retained = _read(weights, model, slots, device, places, options)
    if not options.in_place:
        commit(match.slots, tensors, slots.values(), held)
        refresh_groups(model, {id(slot.tensor): slot.tensor for slot in match.slots.values()})
    call_post_hooks(children_first(model), match.incompatible)
    if options.in_place:
        return match
    for name, value in retained.items():
        setattr(model, name, value)
    if not options.silent:
        _report(match, tensors, weights)
    return match


def _places(
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


def _read(
    weights: OpenModel,
    model: nn.Module,
    slots: Mapping[str, Slot],
    device: torch.device,
    places: Mapping[str, torch.device],
    options: LoadOptions,
) -> tuple[Match, dict[str, Tensor], dict[str, Any]]:
    """What goes where, the tensors for it, and what stays on the model. In place, they are filled."""
    maps = device.type == "cpu" and not places and options.surely_maps and not options.in_place
    # Else for names, shapes and dtypes alone: nothing is to be read ahead.
    mapped = load_tensors(
        weights,
        torch.device("cpu"),
        ignore=options.ignore,
        eager=options.eager if maps else False,
        verify=False,
        silent=True,
    )
    if roots := own_roots(model, mapped):
        match, tensors = _read_own_way(weights, roots, slots, device, options)
        moved = {name: tensors[name].to(place) for name, place in places.items() if name in tensors}
        return match, tensors | moved, {}
    match = match_tensors(mapped, slots, options, weights.shown)
    if options.in_place:
        fill(weights.shown, match, mapped, device, options, weights)
        return match, mapped, {}
    dtypes, retained = dtypes_of(match.slots, mapped, options), {}
    has_parts = any(is_dtensor(slot.tensor) for slot in match.slots.values())
    if options.keep_flash_ref_on_model:
        if places or has_parts:
            what = "the model lies on several devices" if places else "DTensors do not lie in whole blocks"
            raise ValueError(f"{weights.shown}: keep_flash_ref_on_model=True: {what}")
        retained = _read_blocks(weights, device, options)
        tensors = cast(_in_blocks(retained, options), dtypes)
    elif maps and not has_parts:
        tensors = cast(mapped, dtypes)
    elif places:
        tensors = _load_to_places(weights, places, options, match.slots, mapped, dtypes)
    else:
        tensors = _load(weights, device, options, match.slots, mapped, dtypes)
    # As the file has them: on the CPU, and of DTensors the whole, so that all ranks come to the same.
    check_ties(weights.shown, match.slots, mapped, options)
    return match, tensors, retained


def _read_blocks(weights: OpenModel, device: torch.device, options: LoadOptions) -> dict[str, Any]:
    """What stays on the model: the memory that its tensors will live in."""
    storage = read_blocks(weights, device, eager=options.eager, verify=options.verify, silent=options.shown)
    return _retained(storage, weights.footer)


def _retained(storage: FlashTensorStorage, footer: dict[str, Any]) -> dict[str, Any]:
    return {"_flash_shared_storage": storage, "_flash_shared_storage_meta": footer}


def _in_blocks(retained: dict[str, Any], options: LoadOptions) -> dict[str, Tensor]:
    storage, footer = retained.values()
    return dict(iterate_from_flash_tensor(storage, footer, **options.ignore))


def _load(
    weights: OpenModel,
    device: torch.device,
    options: LoadOptions,
    slots: Mapping[str, Slot],
    mapped: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
) -> dict[str, Tensor]:
    """The records of `slots`, each of its dtype; of DTensors this rank's part."""
    wanted = {name: slot.tensor for name, slot in slots.items()}
    packed = {name: blocks for name, slot in slots.items() if (blocks := slot.blocks) is not None}
    how: dict[str, Any] = {"eager": options.eager, "verify": options.verify}

    def load(names: list[str], silent: Silent) -> dict[str, Tensor]:
        if not any(map(is_dtensor, wanted.values())):
            return load_tensors(weights, device, names=names, silent=silent, **how)
        some = {name: wanted[name] for name in names}
        return load_local(weights, some, device, packed=packed, silent=silent, **how)

    if all(mapped[name].dtype == dtype for name, dtype in dtypes.items()):
        return load(list(dtypes), options.shown)
    return load_cast(load, weights.footer, dtypes, options.shown)


def _load_to_places(
    weights: OpenModel,
    places: Mapping[str, torch.device],
    options: LoadOptions,
    slots: Mapping[str, Slot],
    mapped: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
) -> dict[str, Tensor]:
    """`_load`, each record to its device, one device after the other."""
    loaded: dict[str, Tensor] = {}
    whole, done = sum(mapped[name].nbytes for name in dtypes), 0
    for device in {places[name]: None for name in dtypes}:
        some = {name: dtype for name, dtype in dtypes.items() if places[name] == device}
        size = sum(mapped[name].nbytes for name in some)
        shown = part_of(options.shown, done, size, whole)
        part = replace(options, progress=shown if callable(shown) else None)
        loaded |= _load(weights, device, part, {name: slots[name] for name in some}, mapped, some)
        done += size
    return {name: loaded[name] for name in dtypes}


def _read_own_way(
    weights: OpenModel,
    roots: Mapping[str, nn.Module],
    slots: Mapping[str, Slot],
    device: torch.device,
    options: LoadOptions,
) -> tuple[Match, dict[str, Tensor]]:
    """`_read` where modules tell what becomes of the records, which are all loaded before."""
    shown = weights.shown
    if options.keep_flash_ref_on_model:
        raise ValueError(f"{shown}: keep_flash_ref_on_model=True: {_named(roots)} in their own way")
    if any(is_dtensor(slot.tensor) for slot in slots.values()):
        raise ValueError(f"{shown}: {_named(roots)} in their own way, which DTensors cannot follow")
    records = load_tensors(
        weights,
        device,
        ignore=options.ignore,
        eager=options.eager,
        verify=options.verify,
        silent=options.shown,
    )
    return _match_own_way(shown, roots, slots, records, device, options)


def _match_own_way(
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


def assign_records(
    model: nn.Module, records: Mapping[str, Tensor], path: str, options: LoadOptions, device: torch.device
) -> Match:
    """`assign` with records that were loaded from `path` before, to `device`."""
    wanted = filter_state_dict(records, **options.ignore)
    slots = find_slots(model)
    if roots := own_roots(model, wanted):
        match, tensors = _match_own_way(path, roots, slots, wanted, device, options)
    else:
        match = match_tensors(wanted, slots, options, path)
        check_ties(path, match.slots, wanted, options)
        tensors = cast(wanted, dtypes_of(match.slots, wanted, options))
    commit(match.slots, tensors, slots.values())
    call_post_hooks(children_first(model), match.incompatible)
    return match


def _named(roots: Mapping[str, nn.Module]) -> str:
    kinds = sorted({type(module).__name__ for module in roots.values()})
    return f"{', '.join(kinds)} load" if len(kinds) < 4 else f"{', '.join(kinds[:3])} and others load"


def _hand_over(model: nn.Module, weights: OpenModel, options: LoadOptions) -> Match:
    """Load FSDP1's flat parameters, of which no tensor of the model is one record's."""
    if options.keep_flash_ref_on_model:
        raise ValueError(f"{weights.shown}: keep_flash_ref_on_model=True: FSDP1 copies what it loads")
    if isinstance(options.dtype, torch.dtype):
        raise ValueError(f"{weights.shown}: dtype={options.dtype}: FSDP1 keeps the dtypes of the model")
    records = load_tensors(
        weights, torch.device("cpu"), ignore=options.ignore, eager=options.eager, verify=options.verify
    )
    keys = hand_over(model, records, options.demands_params, weights.shown)
    kept = {tensor.dtype for tensor in (*model.parameters(), *model.buffers())}
    others = {record.dtype for record in records.values() if record.is_floating_point()} - kept
    if options.dtype == "file" and others:
        what = ", ".join(sorted(map(str, others)))
        warn(f"{weights.shown}: FSDP1 keeps the dtypes of the model: {what} was cast")
    return Match({}, list(keys.unexpected_keys), list(keys.missing_keys))


def _all_but(model: nn.Module, left: IncompatibleKeys) -> Match:
    slots, missing = find_slots(model), set(left.missing_keys)
    paired = {name: slots[name] for name in find_tensors(model).names if name not in missing}
    return Match(paired, left.unexpected_keys, left.missing_keys)


def _assign_together(model: nn.Module, path: ModelPath, device: torch.device, options: LoadOptions) -> Match:
    """`assign` by all ranks: the model of each gets all weights, and only if those of all others do."""
    with load_together(path, device, options) as file:
        held = find_held(model)
        ranks, slots, described = file.ranks, find_slots(model), file.described(options.ignore)

        match = ranks.agree(lambda: _match_together(model, described, slots, held, device, path, options))
        dtypes = dtypes_of(match.slots, described, options)
        retained: dict[str, Any] = {}
        if options.keep_flash_ref_on_model:
            retained = _retained(FlashTensorStorage(file.blocks()), file.footer)
            tensors = ranks.agree(lambda: cast(_in_blocks(retained, options), dtypes))
        else:
            if len(set(ranks.gather(lambda: tuple(dtypes.items())))) > 1:  # they would not load in step
                raise ValueError(f"{path}: the ranks load different tensors from it, or to different dtypes")
            tensors = load_cast(file.load, file.footer, dtypes, options.shown)
        ranks.agree(lambda: check_ties(str(path), match.slots, tensors, options))
        ranks.agree(lambda: commit(match.slots, tensors, slots.values(), held))
        refresh_groups(model, {id(slot.tensor): slot.tensor for slot in match.slots.values()})
        call_post_hooks(children_first(model), match.incompatible)
    for name, value in retained.items():
        setattr(model, name, value)
    if not options.silent and ranks.rank == 0:
        _report(match, tensors, file)
    return match


def _match_together(
    model: nn.Module,
    described: Mapping[str, Tensor],
    slots: Mapping[str, Slot],
    held: Collection[str],
    device: torch.device,
    path: ModelPath,
    options: LoadOptions,
) -> Match:
    """What goes where on this rank, if a load by all ranks can do it."""
    if options.in_place:
        raise ValueError("in_place=True cannot be combined with use_distributed_loading=True")
    if any(is_dtensor(slot.tensor) for slot in slots.values()):
        raise ValueError(
            "use_distributed_loading=True loads whole tensors: leave it out for DTensors, of which "
            "each rank reads its own part"
        )
    places = _places(model, slots, held, device, options)
    if any(place != device for name, place in places.items() if name not in held):
        raise ValueError(f"{path}: use_distributed_loading=True: the model lies on several devices")
    if loads_flat(model) or (roots := own_roots(model, described)):
        kinds = "FSDP1's modules load" if loads_flat(model) else _named(roots)
        raise ValueError(
            f"{path}: {kinds} in their own way, which use_distributed_loading=True cannot follow"
        )
    return match_tensors(described, slots, options, str(path))


def _device_of(model: nn.Module, options: LoadOptions) -> torch.device:
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


def _report(match: Match, tensors: Mapping[str, Tensor], weights: OpenModel | SharedFile) -> None:
    parameters = sum(slot.is_parameter for slot in match.slots.values())
    elements = sum(tensors[name].numel() for name in match.slots)
    say(
        f"Assigned {human_num_elements(elements)} elements to {parameters} parameters and "
        f"{len(match.slots) - parameters} buffers from {weights.shown}"
    )
    for what, names in (("Missing", match.missing), ("Discarded", match.discarded)):
        if names:
            say(f"{what} {len(names)} names: {listed(names)}")
    if note := unverified_note(weights.shown, weights.footer):
        say(note)
