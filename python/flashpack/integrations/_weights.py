"""What both libraries' integrations share: the weights' file of a folder, and a model built around it."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._core.index import records_of
from .._core.paths import StrPath
from .._files.folder import SUFFIX as SUFFIX
from .._files.folder import checked_subfolder
from .._files.folder import weights_name as weights_name
from .._files.opened import OpenModel
from .._files.shards import index_path
from .._files.sources import shards_of
from .._hub.client import HubOptions, fetch
from .._load.load import load_tensors
from .._load.meta import parameters_on_meta
from .._load.options import LoadOptions
from .._module.assign import assign
from .._module.match import Match
from .._module.records import assign_records
from .._module.slots import find_slots

M = TypeVar("M", bound=nn.Module)
FileDtypes = Mapping[str, torch.dtype]

# Both libraries set the process's default dtype, and patch torch, while they build: one model at a time.
BUILDING = threading.RLock()


def find_weights(folder: Path, variant: str | None = None) -> Path:
    """The weights in `folder`, or their index. Raises FileNotFoundError, saying what is there instead."""
    path = folder / weights_name(variant)
    if not path.is_file() and index_path(path).is_file():
        return index_path(path)
    if not path.is_file():
        others = sorted(entry.name for entry in folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
        there = f"; there are {', '.join(others)}" if others else ""
        raise FileNotFoundError(errno.ENOENT, f"No {path.name} in the folder{there}", str(folder))
    return path


def has_weights(folder: Path, variant: str | None = None) -> bool:
    """Whether `folder` has weights, whole or as shards."""
    path = folder / weights_name(variant)
    return path.is_file() or index_path(path).is_file()


def shard_names(variant: str | None = None) -> list[str]:
    """Patterns of what there is instead of the file `weights_name` when it was too large."""
    name = Path(weights_name(variant))
    return [index_path(name).name, f"{name.stem}-*-of-*{name.suffix}"]


def written_weights(path: Path) -> list[str]:
    """The names of the files that saving to `path` has made: itself, or shards and their index."""
    if path.is_file():
        return [path.name]
    index = index_path(path)
    return [*sorted(set(shards_of(index).values())), index.name]


def fetch_weights(
    source: StrPath, hub: HubOptions, subfolder: str | None, variant: str | None, beside: Iterable[str]
) -> Path:
    """The weights of a model in a folder or a repository, of which the files named `beside` come, too.

    Raises what `fetch` and `find_weights` raise, and ValueError for a subfolder that leads out.
    """
    inside = checked_subfolder(subfolder)
    prefix = f"{inside}/" if inside else ""
    names = (*beside, weights_name(variant), *shard_names(variant))
    folder = fetch(source, hub, [prefix + name for name in names])
    return find_weights(folder / inside, variant)


def refuse_adapters(model: nn.Module) -> None:
    """Raise ValueError for a model with PEFT adapters inside: its names are not those of its class."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{type(model).__name__} has PEFT adapters inside: save them on their own, and delete them from "
            "the model (delete_adapter, unload_lora_weights) to save it"
        )


@dataclass(frozen=True)
class LoadingInfo:
    """What a load left out: the model's names that the file lacks, and the file's that the model lacks."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def as_dict(self) -> dict[str, Any]:
        """As diffusers and transformers return it for `output_loading_info=True`."""
        return {
            "missing_keys": self.missing_keys,
            "unexpected_keys": self.unexpected_keys,
            "mismatched_keys": [],
            "error_msgs": [],
        }


def build_and_load(
    build: Callable[[FileDtypes], M],
    path: Path,
    options: LoadOptions,
    mend: Callable[[M, dict[str, Tensor]], None] | None = None,
) -> tuple[M, LoadingInfo]:
    """A model by `build`, in eval mode, with the weights of `path`; its parameters never have other memory.

    `build` is given the dtypes of the file's tensors by name. Floating buffers take them as parameters do.
    Only if the options allow parameters to be missing or ignored, and some are, is the model built for real,
    so that they have the values which the module gives them. `mend` is called when the file has names that
    the model lacks, with the model and the file's tensors by name, which it renames in place.

    Raises what `assign_from_file` raises, and ValueError for tensors that are left without data.
    """
    weights = OpenModel(str(path))
    dtypes = {name: getattr(torch, dtype) for name, _, dtype in records_of(weights.footer)}
    model = _built(build, dtypes, options)
    if mend is None or find_slots(model).keys() >= dtypes.keys():
        match = assign(model, weights, options)
    else:
        tensors = load_tensors(
            weights, _device_of(options), eager=options.eager, verify=options.verify, silent=options.shown
        )
        mend(model, tensors)
        match = assign_records(model, tensors, str(path), options, _device_of(options))
    return _settle(model, match, path, options)


def build_and_fill(
    build: Callable[[FileDtypes], M], tensors: Mapping[str, Tensor], path: Path, options: LoadOptions
) -> tuple[M, LoadingInfo]:
    """`build_and_load` with tensors that were loaded before, from `path`, to the options' device."""
    model = _built(build, {name: tensor.dtype for name, tensor in tensors.items()}, options)
    match = assign_records(model, tensors, str(path), options, _device_of(options))
    return _settle(model, match, path, options)


def _built(build: Callable[[FileDtypes], M], dtypes: FileDtypes, options: LoadOptions) -> M:
    with BUILDING, parameters_on_meta():
        model = build(dtypes)
    wanted = {name: dtype for name, dtype in dtypes.items() if not options.ignores(name)}
    lacking = _lacking_parameters(model, wanted)
    if lacking and (not options.demands_params or all(options.ignores(name) for name in lacking)):
        with BUILDING:
            model = build(dtypes)
    if not options.coerce_dtype:
        _cast_buffers(model, wanted)
    return model


def _cast_buffers(model: nn.Module, dtypes: FileDtypes) -> None:
    """Give floating buffers the file's dtype, as parameters take it, so that a cast model loads as it was."""
    for name, slot in find_slots(model).items():
        dtype = dtypes.get(name, slot.tensor.dtype)
        floats = slot.tensor.is_floating_point() and dtype.is_floating_point
        if not slot.is_parameter and floats and slot.tensor.dtype != dtype:
            slot.tensor.data = slot.tensor.data.to(dtype)


def _settle(model: M, match: Match, path: Path, options: LoadOptions) -> tuple[M, LoadingInfo]:
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    leftovers = [name for name, tensor in tensors if tensor.is_meta]
    if leftovers:
        raise ValueError(f"{path}: {len(leftovers)} tensors of the model are left without data: {leftovers}")
    model.to(_device_of(options))  # the buffers that the file does not hold
    return model.eval(), LoadingInfo(match.missing, match.discarded)


def _device_of(options: LoadOptions) -> torch.device:
    return torch.device("cpu" if options.device is None else options.device)


def _lacking_parameters(model: nn.Module, held: Collection[str]) -> list[str]:
    slots = find_slots(model).values()
    tied = {id(slot.tensor) for slot in slots if slot.name in held}
    return [slot.name for slot in slots if slot.is_parameter and id(slot.tensor) not in tied]
