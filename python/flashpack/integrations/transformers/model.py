"""Loads of transformers models, and their mixin; the auto classes and pipelines come here, too."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from ..._core.names import initialiser, warn
from ..._core.paths import StrPath
from ..._files.folder import ADAPTER_CONFIG, CONFIG
from ..._load.load import Device, described, load_tensors
from ..._load.meta import parameters_on_meta
from ..._module.slots import Slot, find_slots
from ...mixin import FlashPackMixin
from .._build import BUILDING, build_and_load, not_persistent, weight_of
from .._request import LoadRequest, Unpacked
from ..peft import WEIGHTS, plain_adapter
from ._config import (
    ADAPTER_WEIGHTS,
    GENERATION_CONFIG,
    generation_settings,
    is_for_transformers,
    read_config,
    take_request,
)
from ._convert import load_through_transformers
from ._save import save_model

__all__ = ["FlashPackTransformersModelMixin"]

# Floating dtypes that computations run in: what torch takes as the default dtype.
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


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
    `dtype` (or `torch_dtype`), by default or if "auto" the file's own dtypes, else as transformers casts
    (which keeps some modules of some classes in float32, also of a file that is wholly in half precision);
    `device_map={"": device}`; `generation_config`; `output_loading_info=True` to get (model, info); the
    options of `assign_from_file`; settings of the configuration such as `attn_implementation`, or
    `eos_token_id`, which that of generation gets, too; and what the class itself takes, which `model_args`
    are for, too.

    An adapter in the same folder is applied, as by `from_pretrained`, if peft is installed, and named
    `adapter_name`. `fusion_config`, `use_kernels` and `kernel_config` have their meaning, too.

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
    return load_from(cls, config, request, model_args, rest, generation_settings(kwargs))


def load_from(
    cls: type[PreTrainedModel],
    config: Any,
    request: LoadRequest,
    model_args: tuple[Any, ...],
    arguments: dict[str, Any],
    settings: Mapping[str, Any],
) -> Any:
    """`load_model` with everything found; `arguments` are those for the class alone, `settings` those that
    the generation configuration gets."""
    names: dict[str, str | None] = {}
    frozen: list[str] = []
    if not (model_args or is_for_transformers(config, request)):
        tensors = _map_tensors(request)
        empty = _build_empty(cls, config, tensors, arguments)
        if _fits(empty, tensors, request):
            return _finished(*_load_directly(empty, request), request, settings)
        names = _model_names(empty, tensors)
        frozen = [name for name, each in empty.named_parameters() if not each.requires_grad]
    model, info = load_through_transformers(cls, config, request, model_args, arguments, names)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return _finished(model, info, request, settings)


def _finished(
    model: PreTrainedModel, info: dict[str, Any], request: LoadRequest, settings: Mapping[str, Any]
) -> Any:
    """What the caller gets, with the generation configuration that is given or saved, and the adapter."""
    if model.can_generate():
        if "generation_config" in request.library:
            model.generation_config = copy.deepcopy(request.library["generation_config"])
        elif (saved := _saved_generation(request.folder, settings)) is not None:
            model.generation_config = saved
    _apply_adapter(model, request)
    return (model, info) if request.output_loading_info else model


def _saved_generation(folder: Path, settings: Mapping[str, Any]) -> GenerationConfig | None:
    """What the folder says of generation, if anything, found where transformers looks, with the `settings`.

    Older models have it in config.json, of which configurations leave it out.
    """
    if (folder / GENERATION_CONFIG).is_file():
        return GenerationConfig.from_pretrained(folder, **settings)
    if (folder / CONFIG).is_file():
        return GenerationConfig.from_pretrained(
            folder, config_file_name=CONFIG, _from_model_config=True, **settings
        )
    return None


def _apply_adapter(model: PreTrainedModel, request: LoadRequest) -> None:
    """Load the adapter that lies beside the model, if one does, as `from_pretrained` does."""
    folder, how = request.folder, request.library.get("adapter_kwargs", {})
    if not (folder / ADAPTER_CONFIG).is_file() or not any(folder.glob(ADAPTER_WEIGHTS)):
        return
    if not is_peft_available():
        warn(f"{folder} has an adapter beside the model, which is not applied: peft is not installed")
        return
    packed = (folder / WEIGHTS).is_file()
    with BUILDING, plain_adapter(folder) if packed else nullcontext(os.fspath(folder)) as plain:
        model.load_adapter(plain, request.library.get("adapter_name"), adapter_kwargs=how)


def _map_tensors(request: LoadRequest) -> Mapping[str, Tensor]:
    """The file's tensors, ignored ones aside, unless they were loaded before: mapped and not read, or, if
    that cannot be, without data."""
    if request.tensors is not None:
        return request.tensors
    cpu, ignore = torch.device("cpu"), request.options.ignore
    if not request.weights.can_be_mapped:
        return described(request.weights.footer, ignore)
    return load_tensors(request.weights, cpu, ignore=ignore, eager=False, verify=False)


def _build_empty(cls: Any, config: Any, tensors: Mapping[str, Tensor], arguments: dict[str, Any]) -> Any:
    """A model whose parameters have no memory; its buffers are those that `from_pretrained` computes, of
    dtypes to match the file. Leaves `config` as it is."""
    dtype = _main_dtype(config, tensors)

    def by_class(config: Any, **arguments: Any) -> Any:
        model = cls._from_config(config, dtype=dtype, **arguments)
        model.config.dtype = dtype  # transformers 5.10 sets those of parts alone
        _initialize_again(model)
        return model

    # What this model draws is not the caller's: fresh weights come of the seed as in `from_pretrained`.
    with BUILDING, torch.random.fork_rng(devices=[]), parameters_on_meta():
        return initialiser(cls, by_class)(copy.deepcopy(config), **arguments)


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


def _main_dtype(config: Any, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The configuration's dtype if the file has tensors of it, else that of most elements."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        if tensor.dtype in _PLAIN:
            sizes[tensor.dtype] += tensor.numel()
    wanted = getattr(config, "dtype", None)
    if isinstance(wanted, str):
        wanted = getattr(torch, wanted, None)
    if isinstance(wanted, torch.dtype) and (wanted in sizes or not sizes):
        return wanted
    return max(sizes, key=sizes.__getitem__) if sizes else torch.get_default_dtype()


def _model_names(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, str | None]:
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
    known = {weight_of(tensor) for name, tensor in tensors.items() if name in own or name in names}
    for name, tensor in tensors.items():
        if name not in own and name not in names and weight_of(tensor) in known:
            names[name] = None
    return names


def _fits(model: PreTrainedModel, tensors: Mapping[str, Tensor], request: LoadRequest) -> bool:
    """Whether the file has just what the model needs, so that nothing is to be renamed, made up or cast.

    What it has of buffers that are not persistent makes no difference: they are not loaded.
    """
    slots, computed = find_slots(model), not_persistent(model)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in computed}
    if any(
        name not in slots or _is_other_kind(slots[name], tensor, request) for name, tensor in tensors.items()
    ):
        return False
    if _converts(model, [name for name, each in tensors.items() if not slots[name].takes_shape(each.shape)]):
        return False
    ranges: dict[int, tuple[object, ...]] = {}
    for name, tensor in tensors.items():
        if ranges.setdefault(id(slots[name].tensor), weight_of(tensor)) != weight_of(tensor):
            return False  # tied in the model, though two tensors in the file
    lacks = any(slot.is_parameter and id(slot.tensor) not in ranges for slot in slots.values())
    return not lacks and not _needs_cast(model, tensors, request.dtype)


def _converts(model: PreTrainedModel, names: Collection[str]) -> bool:
    """Whether transformers converts any of these, which the file has in other shapes than the model.

    So it does with experts that are stored transposed.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    mapping = get_model_conversion_mapping(model, add_legacy=False) if names else []
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    return any(each.rename_source_key(name)[1] is not None for each in converters for name in names)


def _is_other_kind(slot: Slot, tensor: Tensor, request: LoadRequest) -> bool:
    """Whether the file's tensor replaces a buffer of another dtype, and not one float another.

    transformers makes floats of batch norms' counters where it keeps all of a module in single precision.
    """
    own = slot.tensor.dtype
    floats = own.is_floating_point and tensor.is_floating_point()
    coerced = slot.is_parameter or bool(request.options.coerce_dtype)
    return not (floats or coerced or own == tensor.dtype)


def _needs_cast(model: PreTrainedModel, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> bool:
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if dtype is None:
        if len(dtypes) != 1:  # what is to stay in single precision does so in the file
            return False
        (dtype,) = dtypes
    return bool(model._get_dtype_plan(dtype)) or not dtypes <= {dtype}


def _load_directly(model: Any, request: LoadRequest) -> tuple[Any, dict[str, Any]]:
    """Assign the file to the model that it fits, on the device. Raises what `assign_from_file` raises."""
    loaded, info = build_and_load(lambda _: model, request)
    loaded.tie_weights()
    told = ("missing_keys", "unexpected_keys")
    kept = SimpleNamespace(**{keys: set(info[keys]) for keys in told})
    loaded._adjust_missing_and_unexpected_keys(kept)
    return loaded, info | {keys: [name for name in info[keys] if name in vars(kept)[keys]] for keys in told}


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
