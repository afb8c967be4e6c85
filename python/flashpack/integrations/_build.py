"""A model built without memory for its parameters, and the weights that are assigned to it."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._convert.revert import revert_from_flashpack
from .._core.tensors import shown_memory
from .._files.folder import ADAPTER_CONFIG
from .._load.load import described
from .._load.meta import left_on_meta, parameters_on_meta
from .._load.options import LoadOptions
from .._module.assign import assign
from .._module.records import assign_records
from .._module.slots import find_slots
from ._request import LoadRequest

M = TypeVar("M", bound=nn.Module)
FileDtypes = Mapping[str, torch.dtype]

# Both libraries set the process's default dtype, and patch torch, while they build: one model at a time.
BUILDING = threading.RLock()


def build_and_load(
    build: Callable[[FileDtypes], M],
    request: LoadRequest,
    mend: Callable[[M, dict[str, Tensor]], None] | None = None,
    expendable: Collection[str] = (),
) -> tuple[M, dict[str, Any]]:
    """A model by `build`, in eval mode, with its weights; its parameters never have other memory.

    `build` is given the dtypes of the file's tensors by name. Floating buffers take them as parameters do.
    Only if the options allow parameters to be missing or ignored, and some are, is the model built for real,
    so that they have the values which the module gives them. `mend` is called when the file has names that
    the model lacks, with the model and the file's tensors by name, which it renames in place. `request.dtype`
    is left to the caller: each library has rules of its own for what it casts. Buffers that are not
    persistent keep what the module computes, as in both libraries: a file's are unexpected, not refused.
    So do, if `request.library` has `ignore_mismatched_sizes`, tensors that the file has in other shapes.
    What the model has no place for is left out without a word where a pattern of `expendable` is in its name.

    Returns the model and what both libraries return for `output_loading_info=True`. Raises what
    `assign_from_file` raises, and ValueError for tensors that are left without data.
    """
    tensors = request.tensors
    held = described(request.weights.footer, {}) if tensors is None else tensors
    dtypes = {name: tensor.dtype for name, tensor in held.items()}
    with BUILDING, parameters_on_meta():
        model = build(dtypes)
    if mend is not None and not find_slots(model).keys() >= dtypes.keys():
        tensors = request.load() if tensors is None else dict(tensors)
        mend(model, tensors)
        held = tensors
    options, unexpected, mismatched = _leaving_out(model, held, request, expendable)
    model = _made_ready(model, lambda: build(dtypes), held, options)
    if tensors is None:
        match = assign(model, request.weights, options)
    else:
        match = assign_records(model, tensors, request.shown, options, request.target)
    info = {
        "missing_keys": match.missing,
        "unexpected_keys": [*match.discarded, *unexpected],
        "mismatched_keys": mismatched,
        "error_msgs": [],
    }
    return _settle(model, request), info


def not_persistent(model: nn.Module) -> set[str]:
    """The names of the buffers that state dicts leave out, as the module computes them."""
    return {name for name, slot in find_slots(model).items() if not slot.persistent}


def _leaving_out(
    model: nn.Module, held: Mapping[str, Tensor], request: LoadRequest, expendable: Collection[str]
) -> tuple[LoadOptions, list[str], list[tuple[str, torch.Size, torch.Size]]]:
    """Options that leave out of a load what `build_and_load` does; the names of it that are reported as
    unexpected, and what is as mismatched."""
    options = request.options
    forgiven = _forgiven(model, held, expendable)
    options = replace(options, ignore_names=(*options.ignore_names, *forgiven))
    computed = not_persistent(model).intersection(held)
    unexpected = sorted(name for name in computed if not options.ignores(name))
    mismatched = _mismatched(model, held, options) if request.library.get("ignore_mismatched_sizes") else []
    names = (*options.ignore_names, *unexpected, *(name for name, _, _ in mismatched))
    return replace(options, ignore_names=names), unexpected, mismatched


def _forgiven(model: nn.Module, held: Iterable[str], expendable: Collection[str]) -> list[str]:
    slots = find_slots(model)
    unplaced = [name for name in held if name not in slots or not slots[name].persistent]
    return [name for name in unplaced if any(re.search(pattern, name) for pattern in expendable)]


def _mismatched(
    model: nn.Module, held: Mapping[str, Tensor], options: LoadOptions
) -> list[tuple[str, torch.Size, torch.Size]]:
    """What the file has in other shapes than the model: names, the file's shapes, the model's."""
    return [
        (name, held[name].shape, slot.tensor.shape)
        for name, slot in find_slots(model).items()
        if name in held
        and slot.persistent
        and not options.ignores(name)
        and not slot.takes_shape(held[name].shape)
    ]


@contextmanager
def as_safetensors(request: LoadRequest, name: str, configs: str) -> Iterator[str]:
    """A temporary folder with the weights as safetensors of this name, for quantizers, which expect these.

    `configs` is a pattern for the files beside them.
    """
    with TemporaryDirectory(prefix="flashpack-") as scratch:
        revert_from_flashpack(request.path, Path(scratch, name))
        for config in request.folder.glob(configs):
            if config.name == ADAPTER_CONFIG:  # whose weights are not among these
                continue
            shutil.copyfile(config, Path(scratch, config.name))
        yield scratch


def _made_ready(model: M, build: Callable[[], M], held: Mapping[str, Tensor], options: LoadOptions) -> M:
    """The model, or one built for real if parameters may keep the module's values, its buffers cast."""
    wanted = {name: tensor.dtype for name, tensor in held.items() if not options.ignores(name)}
    lacking = _lacking_parameters(model, wanted)
    if lacking and (not options.demands_params or all(options.ignores(name) for name in lacking)):
        with BUILDING:
            model = build()
    if not options.coerce_dtype:
        _cast_buffers(model, wanted)
    return model


def _lacking_parameters(model: nn.Module, held: Collection[str]) -> list[str]:
    slots = find_slots(model).values()
    tied = {id(slot.tensor) for slot in slots if slot.name in held}
    return [slot.name for slot in slots if slot.is_parameter and id(slot.tensor) not in tied]


def _cast_buffers(model: nn.Module, dtypes: FileDtypes) -> None:
    """Give floating buffers the file's dtype, as parameters take it, so that a cast model loads as it was."""
    for name, slot in find_slots(model).items():
        own, dtype = slot.tensor.dtype, dtypes.get(name, slot.tensor.dtype)
        is_loaded = not slot.is_parameter and slot.persistent
        if is_loaded and own.is_floating_point and dtype.is_floating_point and own != dtype:
            slot.tensor.data = slot.tensor.data.to(dtype)


def _settle(model: M, request: LoadRequest) -> M:
    if leftovers := left_on_meta(model):
        what = f"{len(leftovers)} tensors of the model are left without data: {leftovers}"
        raise ValueError(f"{request.shown}: {what}")
    model.to(request.target)  # the buffers that the file does not hold
    return model.eval()


def weight_of(tensor: Tensor) -> tuple[object, ...]:
    """What names of one tied weight have in common."""
    return tensor.shape, shown_memory(tensor)
