"""Loads of transformers models, and their mixin; the auto classes and pipelines come here, too."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from transformers import GenerationConfig, PreTrainedModel

from ..._core.paths import StrPath
from ...mixin import FlashPackMixin
from .._request import LoadRequest, Unpacked
from ._build import build_empty, fits, load_directly, map_tensors, model_names
from ._config import FOR_TRANSFORMERS, GENERATION_CONFIG, Device, is_quantized, read_config, take_request
from ._convert import load_through_transformers
from ._save import save_model

__all__ = ["FlashPackTransformersModelMixin"]


def load_model(
    cls: Any,
    pretrained_model_name_or_path: StrPath | Unpacked,
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
    request = take_request(cls, pretrained_model_name_or_path, device, kwargs)
    config, rest = read_config(cls.config_class, request, kwargs)
    return load_from(cls, config, request, model_args, rest)


def load_from(
    cls: type[PreTrainedModel],
    config: Any,
    request: LoadRequest,
    model_args: tuple[Any, ...],
    arguments: dict[str, Any],
) -> Any:
    """`load_model` with everything found; `arguments` are those for the class alone."""
    names: dict[str, str | None] = {}
    frozen: list[str] = []
    if not (model_args or request.library.keys() & set(FOR_TRANSFORMERS) or is_quantized(config)):
        tensors = map_tensors(request)
        empty = build_empty(cls, config, tensors, arguments)
        if fits(empty, tensors, request):
            return _finished(*load_directly(empty, request), request)
        names = model_names(empty, tensors)
        frozen = [name for name, each in empty.named_parameters() if not each.requires_grad]
    model, info = load_through_transformers(cls, config, request, model_args, arguments, names)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return _finished(model, info, request)


def _finished(model: PreTrainedModel, info: dict[str, Any], request: LoadRequest) -> Any:
    """What the caller gets, with the generation configuration that is given or saved."""
    if model.can_generate():
        if "generation_config" in request.library:
            model.generation_config = copy.deepcopy(request.library["generation_config"])
        elif (request.folder / GENERATION_CONFIG).is_file():
            model.generation_config = GenerationConfig.from_pretrained(request.folder)
    return (model, info) if request.output_loading_info else model


class FlashPackTransformersModelMixin(PreTrainedModel, FlashPackMixin):  # type: ignore[no-untyped-call]
    """Mix into a transformers model class, before or after it.

    `FlashPackMixin`'s class attributes are defaults for loading here, too. `flashpack_init_method` is called
    with the configuration.
    """

    flashpack_init_method: ClassVar[str | None] = "from_config"  # which model classes lack: they are called

    save_pretrained_flashpack = save_model
    from_pretrained_flashpack = classmethod(load_model)


# transformers gave the mixin a configuration class as it was made. Before a model class in a list of bases it
# would hide that one's own.
if "config_class" in vars(FlashPackTransformersModelMixin):
    del FlashPackTransformersModelMixin.config_class
