"""assign_from_file: check the whole file against the model, load, then commit in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._core.constants import DEFAULT_CHUNK_BYTES, DEFAULT_NUM_STREAMS
from .._core.index import unverified_note
from .._core.names import listed
from .._core.paths import StrPath
from .._core.progress import Silent
from .._core.text import human_num_elements, say
from .._files.opened import OpenModel
from .._files.sources import ModelPath, model_path, shown_path
from .._load.cast import cast, load_cast, part_of
from .._load.load import Reading, described, load_tensors, surely_maps
from .._load.options import LoadOptions
from .._load.storage import FlashTensorStorage, iterate_from_flash_tensor, read_blocks
from .._ranks.group import world_size_of
from .._ranks.load import SharedFile, load_together
from .._ranks.packed import note_own_blocks
from .commit import commit_to
from .devices import Held, device_of, find_held, places_of
from .dtensors import is_dtensor, load_local
from .fast_path import assign_fast
from .in_place import fill
from .match import IncompatibleKeys, Match, check_ties, dtypes_of, match_tensors
from .own_way import loads_flat, own_roots, settle_groups, told_of
from .records import hand_over, match_own_way
from .slots import Slot, call_post_hooks, children_first, find_slots, find_tensors


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
    cache_dir: StrPath | None = None,
    include: Iterable[str] | None = None,
) -> IncompatibleKeys:
    """Give `model` the weights of a file, or of several, that `load_file` takes, by their names.

    Live tensors keep their identity, requires_grad and optimizer references, and share memory as before;
    parameters take the file's dtype, unless `dtype` says otherwise. Meta tensors are materialized and stay
    tied. Parameters keep their identity unless a weak reference or an autograd graph points at them; buffers
    are replaced. Nothing changes unless everything fits.

    Returns the names that the file lacks and those that the model lacks, as `load_state_dict` does. Not
    missing is what is ignored, or tied to a name that the file has, if only by memory; not unexpected is a
    non-persistent buffer: it is filled.

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
    `eager`, `verify`, `progress` and `cache_dir` as in `load_file`, and the patterns of `include`: all else
    is left alone, in the file as in the model, as what is ignored is.

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


def assign_to(
    model: nn.Module, weights: OpenModel, places: Mapping[str, torch.device], options: LoadOptions
) -> Match:
    """`assign` to a device for each tensor of the model by its name."""
    return _Load(model, weights, torch.device("cpu"), options, places).into_model()


def _assign(
    model: nn.Module, source: ModelPath | OpenModel, options: LoadOptions
) -> Match | IncompatibleKeys:
    """`assign`; of the fast path the names that are left over, as to pair the others takes time."""
    if not isinstance(model, nn.Module):
        given = "a class: call it for a module" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"expected a torch.nn.Module, then the path, not {given}")
    device = device_of(model, options)
    if options.use_distributed_loading and world_size_of(options.world_size) > 1:
        path = source.path if isinstance(source, OpenModel) else source
        return _assign_together(model, path, device, options)
    weights = source if isinstance(source, OpenModel) else OpenModel(model_path(source), options.cache_dir)
    if (incompatible := assign_fast(model, weights, device, options)) is not None:
        if not options.silent and not options.in_place:
            tensors = dict(zip(*find_tensors(model)[:2], strict=True))
            _report(_all_but(model, incompatible), tensors, weights)
        return incompatible
    options.check_include(weights.shown, weights.footer)
    if loads_flat(model):
        return hand_over(model, weights, options)
    note_own_blocks(model)
    settle_groups(model)
    return _Load(model, weights, device, options).into_model()


class _Load:
    """A load of one process: what it reads, how, and where to."""

    def __init__(
        self,
        model: nn.Module,
        weights: OpenModel,
        device: torch.device,
        options: LoadOptions,
        places: Mapping[str, torch.device] | None = None,
    ) -> None:
        self.model, self.weights, self.device, self.options = model, weights, device, options
        self.slots, self.held = find_slots(model), find_held(model)
        self.places = dict(places or places_of(model, self.slots, self.held, device, options))

    def into_model(self) -> Match:
        """Load everything; nothing has changed if it fails, unless it fills in place."""
        match, tensors, retained = self._read()
        if self.options.in_place:
            call_post_hooks(children_first(self.model), match.incompatible)
            return match
        commit_to(self.model, self.weights.shown, match, tensors, self.slots.values(), self.held)
        _retain(self.model, retained, self.weights.footer)
        if not self.options.silent:
            _report(match, tensors, self.weights)
        return match

    def _read(self) -> tuple[Match, dict[str, Tensor], FlashTensorStorage | None]:
        """What goes where, the tensors for it, and the blocks that stay. In place, they are filled."""
        options, weights, device = self.options, self.weights, self.device
        on_cpu = device.type == "cpu" and not self.places
        maps = on_cpu and surely_maps(weights, options.eager, options.verify) and not options.in_place
        read, mapped = not weights.can_be_mapped, self._mapped(maps)
        if roots := own_roots(self.model, mapped):
            return *self._read_own_way(roots), None
        match = match_tensors(mapped, self.slots, options, weights.shown)
        if options.in_place:
            fill(weights.shown, match, mapped, device, options, mapped if read else weights)
            return match, mapped, None
        dtypes, retained = dtypes_of(match.slots, mapped, options), None
        has_parts = any(is_dtensor(slot.tensor) for slot in match.slots.values())
        if options.keep_flash_ref_on_model:
            if self.places or has_parts:
                what = (
                    "the model lies on several devices" if self.places else "DTensors lie in no whole blocks"
                )
                raise ValueError(f"{weights.shown}: keep_flash_ref_on_model=True: {what}")
            retained = read_blocks(weights, device, **options.reading)
            tensors = cast(_in_blocks(retained, weights.footer, options), dtypes)
        elif maps and not has_parts:
            tensors = cast(mapped, dtypes)
        else:
            tensors = self._load(match, mapped, dtypes)
        # As the file has them: on the CPU, and of DTensors the whole, so that all ranks come to the same.
        check_ties(weights.shown, match.slots, tensors if read else mapped, options)
        return match, tensors, retained

    def _mapped(self, maps: bool) -> dict[str, Tensor]:
        """The tensors of the file, mapped; if that cannot be, without data, or in memory to be copied."""
        weights, options, cpu = self.weights, self.options, torch.device("cpu")
        if not weights.can_be_mapped and not options.in_place:
            return described(weights.footer, options.ignore)
        if not weights.can_be_mapped:
            return load_tensors(weights, cpu, ignore=options.ignore, **options.reading)
        # Unless it `maps` for names, shapes and dtypes alone: nothing is to be read ahead.
        how: Reading = {"eager": options.eager if maps else False, "verify": False}
        return load_tensors(weights, cpu, ignore=options.ignore, **how)

    def _load(
        self, match: Match, mapped: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
    ) -> dict[str, Tensor]:
        """The records that `dtypes` names, one device after the other."""
        places = [self.places.get(name, self.device) for name in dtypes]
        loaded: dict[str, Tensor] = {}
        whole, done = sum(mapped[name].nbytes for name in dtypes), 0
        for device in dict.fromkeys(places):
            some = {
                name: dtype
                for (name, dtype), place in zip(dtypes.items(), places, strict=True)
                if place == device
            }
            size = sum(mapped[name].nbytes for name in some)
            silent = part_of(self.options.shown, done, size, whole)
            loaded |= self._load_to(device, {name: match.slots[name] for name in some}, some, silent)
            done += size
        return {name: loaded[name] for name in dtypes}

    def _load_to(
        self,
        device: torch.device,
        slots: Mapping[str, Slot],
        dtypes: Mapping[str, torch.dtype],
        silent: Silent,
    ) -> dict[str, Tensor]:
        """The records of `slots`, each of its dtype; of DTensors this rank's part."""
        packed = {name: blocks for name, slot in slots.items() if (blocks := slot.blocks) is not None}
        has_parts = any(is_dtensor(slot.tensor) for slot in slots.values())

        def load(names: list[str], silent: Silent) -> dict[str, Tensor]:
            reading: Reading = {**self.options.reading, "silent": silent}
            if not has_parts:
                return load_tensors(self.weights, device, names=names, **reading)
            some = {name: slots[name].tensor for name in names}
            return load_local(self.weights, some, device, packed=packed, **reading)

        return load_cast(load, self.weights.footer, dtypes, silent)

    def _read_own_way(self, roots: Mapping[str, nn.Module]) -> tuple[Match, dict[str, Tensor]]:
        """`_read` where modules tell what becomes of the records, which are all loaded before."""
        shown, options = self.weights.shown, self.options
        if options.keep_flash_ref_on_model:
            raise ValueError(f"{shown}: keep_flash_ref_on_model=True: {told_of(roots)} in their own way")
        if any(is_dtensor(slot.tensor) for slot in self.slots.values()):
            raise ValueError(f"{shown}: {told_of(roots)} in their own way, which DTensors cannot follow")
        records = load_tensors(self.weights, self.device, ignore=options.ignore, **options.reading)
        match, tensors = match_own_way(shown, roots, self.slots, records, self.device, options)
        moved = {name: tensors[name].to(place) for name, place in self.places.items() if name in tensors}
        return match, tensors | moved


def _assign_together(model: nn.Module, path: ModelPath, device: torch.device, options: LoadOptions) -> Match:
    """`assign` by all ranks: the model of each gets all weights, and only if those of all others do."""
    shown = shown_path(model_path(path))
    with load_together(path, device, options) as file:
        held, slots, retained = find_held(model), find_slots(model), None
        ranks, described = file.ranks, file.described(options.ignore)
        ranks.agree(lambda: options.check_include(shown, file.footer))
        match = ranks.agree(lambda: _match_together(model, described, slots, held, device, shown, options))
        dtypes = dtypes_of(match.slots, described, options)
        if options.keep_flash_ref_on_model:
            retained = FlashTensorStorage(file.blocks())
            views = ranks.agree(lambda: _in_blocks(retained, file.footer, options))
            tensors = cast(views, dtypes)
        else:
            if len(set(ranks.gather(lambda: tuple(dtypes.items())))) > 1:  # they would not load in step
                raise ValueError(f"{shown}: the ranks load different tensors from it, or to different dtypes")
            tensors = load_cast(file.load, file.footer, dtypes, options.shown)
        ranks.agree(lambda: check_ties(shown, match.slots, tensors, options))
        ranks.agree(lambda: commit_to(model, shown, match, tensors, slots.values(), held))
    _retain(model, retained, file.footer)
    if not options.silent and ranks.rank == 0:
        _report(match, tensors, file)
    return match


def _match_together(
    model: nn.Module,
    described: Mapping[str, Tensor],
    slots: Mapping[str, Slot],
    held: Mapping[str, Held],
    device: torch.device,
    shown: str,
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
    places = places_of(model, slots, held, device, options)
    if any(place != device for name, place in places.items() if name not in held):
        raise ValueError(f"{shown}: use_distributed_loading=True: the model lies on several devices")
    if loads_flat(model) or (roots := own_roots(model, described)):
        kinds = "FSDP1's modules load" if loads_flat(model) else told_of(roots)
        raise ValueError(
            f"{shown}: {kinds} in their own way, which use_distributed_loading=True cannot follow"
        )
    return match_tensors(described, slots, options, shown)


def _in_blocks(
    storage: FlashTensorStorage, footer: dict[str, Any], options: LoadOptions
) -> dict[str, Tensor]:
    return dict(iterate_from_flash_tensor(storage, footer, **options.ignore))


def _retain(model: Any, storage: FlashTensorStorage | None, footer: dict[str, Any]) -> None:
    """Keep the memory that the model's tensors live in on the model."""
    if storage is not None:
        model._flash_shared_storage, model._flash_shared_storage_meta = storage, footer


def _all_but(model: nn.Module, left: IncompatibleKeys) -> Match:
    slots, missing = find_slots(model), set(left.missing_keys)
    paired = {name: slots[name] for name in find_tensors(model).names if name not in missing}
    return Match(paired, left.unexpected_keys, left.missing_keys)


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
