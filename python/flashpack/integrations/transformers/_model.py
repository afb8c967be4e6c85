"""Saving and loading any transformers model; the mixin, the auto classes and pipelines all come here."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from transformers import GenerationConfig, PreTrainedModel

from ..._core.paths import StrPath
from .._weights import LoadingInfo
from ._build import build_empty, fits, load_directly, map_tensors, model_names
from ._convert import as_dict, is_quantized, load_through_transformers
from ._place import GENERATION_CONFIG, Place, read_config
from ._save import save_model
from ._wishes import Device, Wishes

__all__ = ["load_from", "load_model", "save_model"]

P = TypeVar("P", bound=PreTrainedModel)


def load_model(
    cls: type[P],
    pretrained_model_name_or_path: StrPath,
    device: Device | None = None,
    *model_args: Any,
    **kwargs: Any,
) -> Any:
    """A model of class `cls` with the FlashPack weights of a folder or repository, in eval mode, on `device`.

    Keyword arguments: `subfolder`, `variant` and huggingface_hub's `revision`, `token`, `cache_dir`,
    `local_dir`, `local_files_only` and `force_download`; `config`, a configuration or where to read one;
    `dtype` (or `torch_dtype`), by default or if "auto" the file's own dtypes, else as transformers casts;
    `device_map={"": device}`; `generation_config`; `output_loading_info=True` to get (model, info); the
    options of `assign_from_file`; settings of the configuration such as `attn_implementation`; and what the
    class itself takes, which `model_args` are for, too.

    A file with just the model's names is loaded straight to the device. With others (of a head over the model
    or of its base, legacy names, unmerged experts, a quantised model) the tensors go through
    `cls.from_pretrained`. Parameters that the class freezes stay frozen, which that forgets.

    Raises ValueError for names that are missing or left over, unless `strict` or `strict_params` is False
    (fresh values are then made for what is missing), they are ignored, or `output_loading_info` reports them
    and no strictness is asked for; else as `assign_from_file`. What is left over of a file of another class
    of transformers, as of a head, is an error only with `strict=True`; transformers logs it.
    """
    place = Place.take(pretrained_model_name_or_path, kwargs)
    wishes = Wishes.take(cls, device, kwargs)
    config, rest = read_config(cls.config_class, place, kwargs)
    return load_from(cls, config, place, wishes, model_args, rest)


def load_from(
    cls: type[P],
    config: Any,
    place: Place,
    wishes: Wishes,
    model_args: tuple[Any, ...],
    arguments: dict[str, Any],
) -> Any:
    """`load_model` with everything found; `arguments` are those for the class alone."""
    names: dict[str, str | None] = {}
    frozen: list[str] = []
    loaded: tuple[P, LoadingInfo | dict[str, Any]] | None = None
    if not (model_args or wishes.for_transformers or is_quantized(config)):
        tensors = map_tensors(place, wishes)
        model = build_empty(cls, config, tensors, arguments)
        if fits(model, tensors, wishes):
            loaded = load_directly(model, place, wishes)
        else:
            names = model_names(model, tensors)
            frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
    if loaded is None:
        loaded = load_through_transformers(cls, config, place, wishes, model_args, arguments, names)
    model, info = loaded
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    _set_generation_config(model, place, wishes)
    return (model, as_dict(info)) if wishes.output_loading_info else model


def _set_generation_config(model: PreTrainedModel, place: Place, wishes: Wishes) -> None:
    if not model.can_generate():
        return
    if wishes.generation_config is not None:
        model.generation_config = copy.deepcopy(wishes.generation_config)
    elif (place.folder / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(place.folder)
