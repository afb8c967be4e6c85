"""The fast path of a load into a model: the file holds what the model does, in its shapes and dtypes.

Nearly always that is so, and found out natively it takes a fifth of the time that `match_tensors` and
`commit` need for many small tensors. Names that only one of the two has may be left over where the load is
lenient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._core import ops
from .._core.names import is_utf8
from .._core.ops import Outcome
from .._core.paths import SEPARATOR
from .._core.progress import wants_bar
from .._core.tensors import PLAIN_TYPES, bump_versions, is_on
from .._files.opened import OpenModel
from .._load.load import native_device, run_load, surely_maps
from .._load.options import LoadOptions
from .aliases import share_storage
from .devices import is_grouped
from .match import IncompatibleKeys
from .own_way import load_plainly
from .slots import Tensors, call_post_hooks, find_tensors

_FAILED = Outcome(False, [], [])
# Old files lack it, and a batch norm that finds it missing keeps its own.
_COUNT = "num_batches_tracked"


def assign_fast(
    model: nn.Module, weights: OpenModel, device: torch.device, options: LoadOptions
) -> IncompatibleKeys | None:
    """Load the file into the model if the records are as tensors of the model; returns the names left over.

    Else None: nothing has changed, and matching the names one by one tells what does not fit.
    """
    if (
        options.keep_flash_ref_on_model
        or any(options.ignore.values())
        or isinstance(options.dtype, torch.dtype)
        or is_grouped(model)
    ):
        return None
    if device.type not in ("cpu", "cuda"):
        return None
    if not options.in_place:
        device = native_device(device)
    try:
        found = find_tensors(model)
    except KeyError:  # a ScriptModule's __dict__ is not a module's
        return None
    tensors = found.tensors
    # What the operators cannot see; that all are on one device, they do.
    if not tensors or not is_on(tensors[0], device) or not load_plainly(model, found.kinds, found.hooked):
        return None
    # The records of one tied tensor are to be compared.
    if not set(map(type, tensors)).issubset(PLAIN_TYPES) or len(set(map(id, tensors))) < len(tensors):
        return None
    try:
        incompatible = _load_common(model, weights, found, options)
    except RuntimeError:
        if all(map(_is_plain, tensors)):
            raise
        return None  # torch itself refuses what an operator cannot take, before it runs
    if incompatible is not None:
        call_post_hooks(found.hooked, incompatible)
    return incompatible


def _load_common(
    model: nn.Module, weights: OpenModel, found: Tensors, options: LoadOptions
) -> IncompatibleKeys | None:
    """Load what file and model have in common, if that is all, or the options let the rest be left over."""
    attempt = _fill if options.in_place else _replace
    listed, tensors = found.names, found.tensors
    if not options.in_place and share_storage(found.unsaved, tensors):
        return None
    names = SEPARATOR.join(listed)
    if not is_utf8(names):
        return None
    outcome = attempt(weights, names, tensors, options, partly=False)
    if outcome.done:
        return IncompatibleKeys([], [])
    missing = [listed[place] for place in outcome.unknown]
    if not _may_be_left_over(model, missing, outcome.unnamed, options) or len(missing) == len(listed):
        return None
    left = set(outcome.unknown)
    common = [place for place in range(len(listed)) if place not in left]
    names, some = SEPARATOR.join(listed[place] for place in common), [tensors[place] for place in common]
    if share_storage([tensors[place] for place in left], some):
        return None
    outcome = attempt(weights, names, some, options, partly=True)
    return IncompatibleKeys(missing, outcome.unnamed) if outcome.done else None


def _may_be_left_over(
    model: nn.Module, missing: Sequence[str], unexpected: Sequence[str], options: LoadOptions
) -> bool:
    """Whether names that only one side has are just left alone, whatever they are of."""
    if options.refuses_unknown_names or not (missing or unexpected):
        return False
    if any(name.rpartition(".")[2] == _COUNT for name in missing):
        return False
    return not any(_is_of_buffer(model, name) for name in unexpected)


def _is_of_buffer(model: nn.Module, name: str) -> bool:
    """Whether it is the name of a buffer that state dicts do not hold: it is filled."""
    path, _, attribute = name.rpartition(".")
    try:
        return attribute in model.get_submodule(path)._buffers
    except AttributeError:  # there is no such module
        return False


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_conj() and not tensor.is_neg()


def _fill(
    weights: OpenModel, names: str, tensors: list[Tensor], options: LoadOptions, *, partly: bool
) -> Outcome:
    if not all(map(Tensor.data_ptr, tensors)):  # without elements, or without the memory for them
        return _FAILED
    done = True  # perhaps halfway, if it fails
    try:
        outcome = run_load(
            lambda how: ops.fill_all(weights.handle, names, tensors, partly=partly, **how),
            weights,
            tensors[0].device,
            {**options.reading, "eager": True},
        )
        done = outcome.done
    finally:
        if done:
            bump_versions(tensors)
    return outcome


def _replace(
    weights: OpenModel, names: str, tensors: list[Tensor], options: LoadOptions, *, partly: bool
) -> Outcome:
    maps = surely_maps(weights, options.eager, options.verify) and tensors[0].device.type == "cpu"
    # Who watches may fail, or cancel the load, when all has been read: nothing may have changed then.
    if not maps and (options.progress is not None or wants_bar(options.silent)):
        return _FAILED
    if any(map(Tensor.is_inference, tensors)):  # in whose place come tensors that can be trained
        return _FAILED
    some = next((tensor for tensor in tensors if tensor.numel()), tensors[0])
    before = some.data_ptr()
    try:
        return run_load(
            lambda how: ops.assign_all(weights.handle, names, tensors, partly=partly, **how),
            weights,
            tensors[0].device,
            {**options.reading, "silent": True if maps else options.silent},
        )
    finally:
        if some.data_ptr() != before:  # also where a warning was an error, or Ctrl-C came late
            bump_versions(tensors)
