"""assign_from_file: check the whole file against the model, load, then commit in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._commit import commit
from ._distributed import require_single_process
from ._footer import read_index, unverified_note
from ._in_place import fill, fill_all
from ._load import load_tensors
from ._match import Match, check_fit, match_tensors
from ._options import LoadOptions
from ._paths import read_one_version
from ._slots import find_slots
from ._sources import ModelPath, model_path, shown_path
from ._storage import iterate_from_flash_tensor, read_blocks
from .constants import DEFAULT_CHUNK_BYTES, DEFAULT_NUM_STREAMS
from .utils import human_num_elements


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
) -> None:
    """Give `model` the weights of a file, or of several, that `load_file` takes, by their names.

    Live tensors keep their identity, requires_grad and optimizer references; parameters take the file's
    dtype. Tensors on the meta device become real ones, ties kept: parameters as the same objects unless
    something holds weak references or a graph to them, buffers by replacement. Nothing is changed unless
    everything fits.

    `device`: default is the model's own, meta counting as cpu. `strict` overrides `strict_params` and
    `strict_buffers`: whether a name that the file lacks is an error; a name that the model lacks is one
    when any of the three is set. `coerce_dtype` casts buffers to the model's dtype instead of refusing.
    `keep_flash_ref_on_model` leaves the blocks and the footer on the model as `_flash_shared_storage` and
    `_flash_shared_storage_meta`. `eager`, `verify` and `progress` as in `load_file`.

    `in_place=True` fills the memory that the model's tensors have already: every data_ptr stays, as CUDA
    graphs and hot swaps of weights need, and no second copy of the model is made. Shapes and dtypes must be
    the file's. Bytes go straight to the model, so a read that fails halfway leaves it with some of them;
    whatever can be checked is checked before the first byte.

    Raises ValueError for names, shapes or dtypes that do not fit, FlashPackError or ChecksumError for an
    unsound file, OSError for one that cannot be read, NotImplementedError for more than one rank.
    """
    assign(model, path, LoadOptions.pick(locals()))


def assign(model: nn.Module, path: ModelPath, options: LoadOptions) -> Match:
    """`assign_from_file` with the options as one value; returns what went where and what did not."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, not {type(model).__name__}")
    if options.use_distributed_loading:
        require_single_process(options.world_size)
    text = model_path(path)
    device = _device_of(model, options)
    slots = find_slots(model)
    if options.in_place and (filled := fill_all(text, slots, device, options)):
        return filled
    maps = device.type == "cpu" and options.surely_maps and not options.in_place
    # Else for names, shapes and dtypes alone: nothing is to be read ahead.
    mapped = load_tensors(
        text,
        torch.device("cpu"),
        ignore=options.ignore,
        eager=options.eager if maps else False,
        verify=False,
        silent=True,
    )
    match = match_tensors(mapped, slots, options, shown_path(text))
    if options.in_place:
        read_one_version(text, lambda: fill(text, match, mapped, device, options))
        return match
    keepsakes: dict[str, Any] = {}
    if options.keep_flash_ref_on_model:
        tensors = _load_whole_blocks(text, device, options, keepsakes)
    elif maps:
        tensors = mapped
    else:
        tensors = _load_matched(text, device, options, match)
    if tensors is not mapped:  # the file may have been replaced since it was checked
        check_fit(match.slots, tensors, options, shown_path(text))
    commit(match.slots, tensors, slots.values())
    for name, value in keepsakes.items():
        setattr(model, name, value)
    if not options.silent:
        _report(match, tensors, text)
    return match


def _device_of(model: nn.Module, options: LoadOptions) -> torch.device:
    """The device asked for, else the model's own; meta is where weights come from, never where they go."""
    device = options.device
    if device is None:
        device = getattr(model, "device", None)
    if device is None:
        device = next((parameter.device for parameter in model.parameters()), "cpu")
    resolved = torch.device(device)
    return torch.device("cpu") if resolved.type == "meta" else resolved


def _load_matched(path: str, device: torch.device, options: LoadOptions, match: Match) -> dict[str, Tensor]:
    return load_tensors(
        path,
        device,
        names=list(match.slots),
        eager=options.eager,
        verify=options.verify,
        silent=options.shown,
    )


def _load_whole_blocks(
    path: str, device: torch.device, options: LoadOptions, keepsakes: dict[str, Any]
) -> dict[str, Tensor]:
    """Load by blocks, so that what stays on the model is the memory its tensors live in."""
    storage = read_blocks(path, device, eager=options.eager, verify=options.verify, silent=options.shown)
    footer = read_index(path)
    keepsakes["_flash_shared_storage"] = storage
    keepsakes["_flash_shared_storage_meta"] = footer
    return dict(iterate_from_flash_tensor(storage, footer, **options.ignore))


def _report(match: Match, tensors: Mapping[str, Tensor], path: str) -> None:
    parameters = sum(slot.is_parameter for slot in match.slots.values())
    elements = sum(tensors[name].numel() for name in match.slots)
    print(
        f"Assigned {human_num_elements(elements)} elements to {parameters} parameters and "
        f"{len(match.slots) - parameters} buffers from {shown_path(path)}"
    )
    for what, names in (("Missing", match.missing), ("Discarded", match.discarded)):
        if names:
            print(f"{what} {len(names)} names: {names}")
    if note := unverified_note(path):
        print(note)
