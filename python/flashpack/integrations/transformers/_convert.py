"""The way through transformers' own loader, for files whose names or values are not yet the model's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..._load.storage import FlashTensorStorage, iterate_from_flash_tensor, read_blocks
from ..._module.match import check_names
from ..._module.slots import find_slots
from ..._ranks.group import world_size_of
from ..._ranks.load import load_together
from .._build import BUILDING, as_safetensors, not_persistent, weight_of
from .._request import LoadRequest
from ._config import FOR_TRANSFORMERS, is_of_another_class, is_quantized

P = TypeVar("P", bound=PreTrainedModel)


def load_through_transformers(
    cls: type[P],
    config: Any,
    request: LoadRequest,
    model_args: tuple[Any, ...],
    arguments: dict[str, Any],
    names: Mapping[str, str | None],
) -> tuple[P, dict[str, Any]]:
    """Hand the tensors to `cls.from_pretrained`, which renames, merges, casts, ties and initialises.

    `names` are the model's for those of the file that it has under others; None leaves one out.

    Returns the model and transformers' loading info. Raises ValueError in the words of `assign_from_file` for
    names that are missing or left over, unless the options allow it; and what transformers raises.
    """
    retained: dict[str, Any] = {}
    described = is_quantized(config) and _has_notes(request)
    tensors = None if described else _renamed(_load(request, retained), names)
    # Quantizers take their metadata from a file alone.
    origin = as_safetensors(request, "model.safetensors", "*.json") if described else nullcontext()
    # With a map transformers needs accelerate, and without one it loads to the CPU.
    device = request.target
    load: Any = cls.from_pretrained  # its annotation knows no output_loading_info
    with BUILDING, origin as folder:
        model, info = load(
            folder,
            *model_args,
            config=config,
            state_dict=tensors,
            dtype=request.dtype or _dtype_of(config, (tensors or {}).values()),
            device_map=None if device.type == "cpu" else {"": device},
            output_loading_info=True,
            **{name: request.library[name] for name in FOR_TRANSFORMERS if name in request.library},
            **arguments,
        )
    info["unexpected_keys"] = _without_aliases(info["unexpected_keys"], tensors or {})
    _check(model, info, request, config)
    model.config.name_or_path = model.name_or_path = request.source
    for name, value in retained.items():
        setattr(model, name, value)
    return model, {name: sorted(value) if isinstance(value, Set) else value for name, value in info.items()}


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str | None]) -> dict[str, Tensor]:
    renamed = {names.get(name, name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in renamed.items() if name is not None}


def _has_notes(request: LoadRequest) -> bool:
    """Whether the quantizer that packed the file says something about its tensors."""
    return request.tensors is None and bool(request.weights.footer.get("metadata", {}).keys() - {"format"})


def _load(request: LoadRequest, retained: dict[str, Any]) -> Mapping[str, Tensor]:
    """The tensors on the device; `retained` gets what is to stay on the model."""
    options = request.options
    if request.tensors is not None:
        return request.tensors
    if options.use_distributed_loading and world_size_of(options.world_size) > 1:
        with load_together(request.path, request.target, options) as file:
            if not options.keep_flash_ref_on_model:
                return file.tensors(file.described(options.ignore))
            storage, footer = FlashTensorStorage(file.blocks()), file.footer
    elif options.keep_flash_ref_on_model:
        storage = read_blocks(request.weights, request.target, **options.reading)
        footer = request.weights.footer
    else:
        return request.load()
    retained.update(_flash_shared_storage=storage, _flash_shared_storage_meta=footer)
    return dict(iterate_from_flash_tensor(storage, footer, **options.ignore))


def _dtype_of(config: Any, tensors: Iterable[Tensor]) -> torch.dtype | str:
    """The dtype that all floating tensors have, if they have one; else transformers shall choose."""
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return "auto" if len(dtypes) != 1 or is_quantized(config) else dtypes.pop()


def _without_aliases(names: Iterable[str], tensors: Mapping[str, Tensor]) -> set[str]:
    """One name for each tied weight, the model's first, as safetensors hold it under one."""
    places = {name: place for place, name in enumerate(tensors)}
    kept: dict[object, str] = {}
    for name in sorted(names, key=lambda name: places.get(name, -1)):
        tensor = tensors.get(name)
        kept.setdefault(name if tensor is None else weight_of(tensor), name)
    return set(kept.values())


def _check(model: PreTrainedModel, info: Mapping[str, Any], request: LoadRequest, config: Any) -> None:
    options, slots = request.options, find_slots(model)
    missing = [slots[name] for name in sorted(info["missing_keys"]) if name in slots]
    expected = [slot for slot in missing if not options.ignores(slot.name)]
    forgiven = options.strict is None and is_of_another_class(type(model), config)
    unexpected = [] if forgiven else sorted(set(info["unexpected_keys"]) - not_persistent(model))
    check_names(request.shown, unexpected, expected, options)
