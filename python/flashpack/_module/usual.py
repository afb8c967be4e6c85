"""The usual case of loading into a model: the file holds just what the model does, in its shapes and dtypes.

Nearly always that is so, and found out natively it takes a fifth of the time that `match_tensors` and
`commit` need for many small tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._core.names import is_utf8
from .._core.paths import SEPARATOR
from .._core.progress import wants_bar
from .._core.tensors import PLAIN_TYPES, is_on
from .._files.opened import OpenModel
from .._load.load import load_all_for, load_all_into, native_device
from .._load.options import LoadOptions
from .match import IncompatibleKeys
from .offloaded import is_grouped
from .own_way import call_post_hooks, is_usual
from .slots import find_tensors


def assign_usual(model: nn.Module, weights: OpenModel, device: torch.device, options: LoadOptions) -> bool:
    """Load the file into the model if each of its records is as a tensor of its own, and none is left over.

    Else False: nothing has changed, and matching the names one by one tells what does not fit.
    """
    if (
        options.keep_flash_ref_on_model
        or any(options.ignore.values())
        or isinstance(options.dtype, torch.dtype)
        or is_grouped(model)
    ):
        return False
    if device.type not in ("cpu", "cuda"):
        return False
    if not options.in_place:
        device = native_device(device)
    try:
        listed, tensors, kinds, hooked = find_tensors(model)
    except KeyError:  # a ScriptModule's __dict__ is not a module's
        return False
    names = SEPARATOR.join(listed)
    # What the operators cannot see; that all are on one device, they do.
    if not tensors or not is_on(tensors[0], device) or not is_utf8(names) or not is_usual(kinds, hooked):
        return False
    # The records of one tied tensor are to be compared.
    if not set(map(type, tensors)).issubset(PLAIN_TYPES) or len(set(map(id, tensors))) < len(tensors):
        return False
    try:
        if not (_fill if options.in_place else _replace)(weights, names, tensors, options):
            return False
    except RuntimeError:
        if all(map(_is_plain, tensors)):
            raise
        return False  # torch itself refuses what an operator cannot take, before it runs
    call_post_hooks(hooked, IncompatibleKeys([], []))
    return True


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_conj() and not tensor.is_neg()


def _fill(weights: OpenModel, names: str, tensors: list[Tensor], options: LoadOptions) -> bool:
    if not all(map(Tensor.data_ptr, tensors)):  # without elements, or without the memory for them
        return False
    try:
        filled = load_all_into(weights, names, tensors, verify=options.verify, silent=options.shown)
    except BaseException:  # perhaps halfway
        bump_versions(tensors)
        raise
    if filled:
        bump_versions(tensors)
    return filled


def _replace(weights: OpenModel, names: str, tensors: list[Tensor], options: LoadOptions) -> bool:
    maps = options.surely_maps and tensors[0].device.type == "cpu"
    # Who watches may fail, or cancel the load, when all has been read: nothing may have changed then.
    if not maps and (options.progress is not None or wants_bar(options.silent)):
        return False
    if any(map(Tensor.is_inference, tensors)):  # in whose place come tensors that can be trained
        return False
    some = next((tensor for tensor in tensors if tensor.numel()), tensors[0])
    before = some.data_ptr()
    try:
        replaced = load_all_for(
            weights,
            names,
            tensors,
            eager=options.eager,
            verify=options.verify,
            silent=True if maps else options.silent,
        )
    except BaseException:
        if some.data_ptr() != before:  # everything has changed: a warning was an error, or Ctrl-C came late
            bump_versions(tensors)
        raise
    if replaced:
        bump_versions(tensors)
    return replaced


def bump_versions(tensors: Sequence[Tensor]) -> None:
    """A backward pass that saved the old values must notice that they are gone."""
    torch.autograd.graph.increment_version(tensors)  # inference tensors have none and are passed over
