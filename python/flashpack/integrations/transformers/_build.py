"""The direct way: a model without memory whose names are those of the file, and the file assigned to it."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..._core.hints import initialiser
from ..._load.load import load_tensors
from ..._load.meta import parameters_on_meta
from ..._module.slots import Slot, find_slots
from .._build import BUILDING, build_and_load, range_of
from .._request import LoadRequest

P = TypeVar("P", bound=PreTrainedModel)


def map_tensors(request: LoadRequest) -> Mapping[str, Tensor]:
    """The file's tensors, ignored ones aside, mapped and not read, unless they were loaded before."""
    if request.tensors is not None:
        return request.tensors
    cpu, ignore = torch.device("cpu"), request.options.ignore
    return load_tensors(request.weights, cpu, ignore=ignore, eager=False, verify=False)


def build_empty(cls: type[P], config: Any, tensors: Mapping[str, Tensor], arguments: dict[str, Any]) -> P:
    """A model whose parameters have no memory; its buffers are real and have dtypes to match the file."""
    # What this model draws is not the caller's: fresh weights come of the seed as in `from_pretrained`.
    with BUILDING, torch.random.fork_rng(devices=[]), parameters_on_meta():
        return build_as_loaded(cls, config, main_dtype(config, tensors), **arguments)


def build_as_loaded(cls: type[P], config: Any, dtype: torch.dtype, **arguments: Any) -> P:
    """A new model of `dtype`, with the buffers that `from_pretrained` computes. Leaves `config` as it is."""
    from_config: Callable[..., P] = cls._from_config

    def by_class(config: Any, **arguments: Any) -> P:
        model = from_config(config, dtype=dtype, **arguments)
        model.config.dtype = dtype  # transformers 5.10 sets those of parts alone
        _initialize_again(model)
        return model

    model: P = initialiser(cls, by_class)(copy.deepcopy(config), **arguments)
    return model


def _initialize_again(model: PreTrainedModel) -> None:
    """Compute the buffers as `from_pretrained` does: under torch's default dtype, not the model's.

    The constructor ran under the model's dtype, in which tables of frequencies lose precision. Buffers that
    the class does not initialize keep what the constructor gave them.
    """
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
    for parameter in model.parameters():  # to draw values for those without memory would be for nothing
        parameter._is_hf_initialized = parameter.is_meta  # type: ignore[attr-defined]
    initialize: Callable[[], None] = model.initialize_weights
    initialize()


def main_dtype(config: Any, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The configuration's dtype if the file has tensors of it, else that of most elements."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        if is_plain_float(tensor.dtype):
            sizes[tensor.dtype] += tensor.numel()
    wanted = getattr(config, "dtype", None)
    if isinstance(wanted, str):
        wanted = getattr(torch, wanted, None)
    if isinstance(wanted, torch.dtype) and (wanted in sizes or not sizes):
        return wanted
    return max(sizes, key=sizes.__getitem__) if sizes else torch.get_default_dtype()


def is_plain_float(dtype: torch.dtype) -> bool:
    """A floating dtype that computations run in: what torch takes as the default dtype."""
    return dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def model_names(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, str | None]:
    """What the model calls those of `tensors` that it knows under another name, or under none.

    A base model and a model with a head differ by the prefix of their base; None is for another name of a
    tied weight that the model has under one of its own, and for what a head has under a name of its base.
    """
    own = model.state_dict().keys()
    prefix = f"{model.base_model_prefix}."
    names: dict[str, str | None] = {}
    for name in tensors:
        bare = name.removeprefix(prefix)
        for other in (bare, prefix + name):
            if name not in own and other in own and (other == bare or other not in tensors):
                names |= {other: None, name: other}
    known = {range_of(tensor) for name, tensor in tensors.items() if name in own or name in names}
    for name, tensor in tensors.items():
        if name not in own and name not in names and tensor.numel() and range_of(tensor) in known:
            names[name] = None
    return names


def fits(model: PreTrainedModel, tensors: Mapping[str, Tensor], request: LoadRequest) -> bool:
    """Whether the file has just what the model needs, so that nothing is to be renamed, made up or cast."""
    slots = find_slots(model)
    if any(
        name not in slots or _is_other_kind(slots[name], tensor, request) for name, tensor in tensors.items()
    ):
        return False
    ranges: dict[int, tuple[object, ...]] = {}
    for name, tensor in tensors.items():
        if ranges.setdefault(id(slots[name].tensor), range_of(tensor)) != range_of(tensor):
            return False  # tied in the model, though two tensors in the file
    lacks = any(slot.is_parameter and id(slot.tensor) not in ranges for slot in slots.values())
    return not lacks and not _needs_cast(model, tensors, request.dtype)


def _is_other_kind(slot: Slot, tensor: Tensor, request: LoadRequest) -> bool:
    """Whether the file's tensor replaces a buffer of another dtype, and not one float another.

    transformers makes floats of batch norms' counters where it keeps all of a module in single precision.
    """
    own = slot.tensor.dtype
    floats = own.is_floating_point and tensor.is_floating_point()
    coerced = slot.is_parameter or bool(request.options.coerce_dtype)
    return not (floats or coerced or own == tensor.dtype)


def _needs_cast(model: PreTrainedModel, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> bool:
    if dtype is None:
        return False
    return bool(model._get_dtype_plan(dtype)) or any(
        tensor.is_floating_point() and tensor.dtype != dtype for tensor in tensors.values()
    )


def load_directly(model: P, request: LoadRequest) -> tuple[P, dict[str, Any]]:
    """Assign the file to the model that it fits, on the device. Raises what `assign_from_file` raises."""
    loaded, info = build_and_load(lambda _: model, request)
    loaded.tie_weights()
    ignored = [re.compile(pattern) for pattern in loaded._keys_to_ignore_on_load_missing or ()]
    missing = [name for name in info["missing_keys"] if not any(each.search(name) for each in ignored)]
    return loaded, {**info, "missing_keys": missing}
