"""The way through transformers' own loader, for files whose names or values are not yet the model's."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from ..._convert.revert import revert_from_flashpack
from ..._files.opened import OpenModel
from ..._load.file import FlashPackFile
from ..._load.load import load_tensors
from ..._load.storage import FlashTensorStorage, iterate_from_flash_tensor, read_flashpack_file
from ..._module.match import check_names
from ..._module.slots import find_slots
from ..._ranks.group import world_size_of
from ..._ranks.load import load_together
from .._weights import BUILDING, LoadingInfo
from ._build import range_of
from ._names import architecture_of, without_prefix
from ._place import Place
from ._wishes import Wishes

P = TypeVar("P", bound=PreTrainedModel)


def load_through_transformers(
    cls: type[P],
    config: Any,
    place: Place,
    wishes: Wishes,
    model_args: tuple[Any, ...],
    arguments: dict[str, Any],
    names: Mapping[str, str | None],
) -> tuple[P, dict[str, Any]]:
    """Hand the tensors to `cls.from_pretrained`, which renames, merges, casts, ties and initialises.

    `names` are the model's for those of the file that it has under others; None leaves one out.

    Returns the model and transformers' loading info. Raises ValueError in the words of `assign_from_file` for
    names that are missing or left over, unless the options allow it; and what transformers raises.
    """
    keepsakes: dict[str, Any] = {}
    described = is_quantized(config) and bool(_metadata(place))
    tensors = None if described else _renamed(_load(place, wishes, keepsakes), names)
    # With a map transformers needs accelerate, and without one it loads to the CPU.
    device_map = None if wishes.device.type == "cpu" else {"": wishes.device}
    load: Any = cls.from_pretrained  # its annotation knows no output_loading_info
    with BUILDING, _as_safetensors(place, described) as folder:
        model, info = load(
            folder,
            *model_args,
            config=config,
            state_dict=tensors,
            dtype=wishes.dtype or _dtype_of(config, (tensors or {}).values()),
            device_map=device_map,
            output_loading_info=True,
            **wishes.for_transformers,
            **arguments,
        )
    info["unexpected_keys"] = _without_aliases(info["unexpected_keys"], tensors or {})
    _check(model, info, place, wishes, config)
    model.config.name_or_path = model.name_or_path = place.source
    for name, value in keepsakes.items():
        setattr(model, name, value)
    return model, info


def _metadata(place: Place) -> dict[str, str]:
    """What the quantizer that packed the file says about its tensors."""
    with FlashPackFile(place.weights) as file:
        metadata = file.metadata() or {}
    return {name: value for name, value in metadata.items() if name != "format"}


@contextmanager
def _as_safetensors(place: Place, wanted: bool) -> Iterator[str | None]:
    """The model's folder with safetensors, if wanted: quantizers take their metadata from there alone."""
    if not wanted:
        yield None
        return
    with TemporaryDirectory(prefix="flashpack-") as scratch:
        revert_from_flashpack(place.weights, Path(scratch, "model.safetensors"))
        for config in place.weights.parent.glob("*.json"):
            shutil.copyfile(config, Path(scratch, config.name))
        yield scratch


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str | None]) -> dict[str, Tensor]:
    renamed = {names.get(name, name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in renamed.items() if name is not None}


def _load(place: Place, wishes: Wishes, keepsakes: dict[str, Any]) -> dict[str, Tensor]:
    options = wishes.options
    if options.use_distributed_loading and world_size_of(options.world_size) > 1:
        return _load_together(place, wishes, keepsakes)
    how: dict[str, Any] = {"eager": options.eager, "verify": options.verify, "silent": options.shown}
    if not options.keep_flash_ref_on_model:
        return load_tensors(OpenModel(str(place.weights)), wishes.device, ignore=options.ignore, **how)
    storage, footer = read_flashpack_file(place.weights, wishes.device, **how)
    keepsakes.update(_flash_shared_storage=storage, _flash_shared_storage_meta=footer)
    return dict(iterate_from_flash_tensor(storage, footer, **options.ignore))


def _load_together(place: Place, wishes: Wishes, keepsakes: dict[str, Any]) -> dict[str, Tensor]:
    options = wishes.options
    with load_together(place.weights, wishes.device, options) as file:
        if not options.keep_flash_ref_on_model:
            return file.tensors(file.described(options.ignore))
        storage = FlashTensorStorage(file.blocks())
    keepsakes.update(_flash_shared_storage=storage, _flash_shared_storage_meta=file.footer)
    return dict(iterate_from_flash_tensor(storage, file.footer, **options.ignore))


def _dtype_of(config: Any, tensors: Iterable[Tensor]) -> torch.dtype | str:
    """The dtype that all floating tensors have, if they have one; else transformers shall choose."""
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return "auto" if len(dtypes) != 1 or is_quantized(config) else dtypes.pop()


def is_quantized(config: Any) -> bool:
    """Whether the configuration, or that of its text model, says how the weights are quantised."""
    text_config = config.get_text_config()
    return any(getattr(each, "quantization_config", None) for each in (config, text_config))


def _without_aliases(names: Iterable[str], tensors: Mapping[str, Tensor]) -> set[str]:
    """One name for each tied weight, the model's first, as safetensors hold it under one."""
    places = {name: place for place, name in enumerate(tensors)}
    kept: dict[object, str] = {}
    for name in sorted(names, key=lambda name: places.get(name, -1)):
        tensor = tensors.get(name)
        kept.setdefault(name if tensor is None or not tensor.numel() else range_of(tensor), name)
    return set(kept.values())


def _check(
    model: PreTrainedModel, info: Mapping[str, Any], place: Place, wishes: Wishes, config: Any
) -> None:
    options, slots = wishes.options, find_slots(model)
    missing = [slots[name] for name in sorted(info["missing_keys"]) if name in slots]
    expected = [slot for slot in missing if not options.ignores(slot.name)]
    forgiven = options.strict is None and _is_of_another_class(type(model), config)
    check_names(str(place.weights), [] if forgiven else sorted(info["unexpected_keys"]), expected, options)


def _is_of_another_class(cls: type[PreTrainedModel], config: Any) -> bool:
    """Whether the configuration is that of another class of transformers, with names that `cls` may lack."""
    saved = without_prefix(config.architectures) or []
    return architecture_of(cls) not in saved and any(hasattr(transformers, name) for name in saved)


def as_dict(info: LoadingInfo | Mapping[str, Any]) -> dict[str, Any]:
    """Loading info as the caller gets it: lists, sorted where transformers has sets."""
    if isinstance(info, LoadingInfo):
        return info.as_dict()
    return {
        name: sorted(value) if isinstance(value, (set, frozenset)) else value for name, value in info.items()
    }
