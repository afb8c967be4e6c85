"""Any diffusers model, or other module with a diffusers config, in a folder: config.json and its weights."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..._convert.revert import revert_from_flashpack
from ..._core.hints import filter_kwargs_for_method, keywords_of, warn_of_unused
from ..._core.paths import StrPath, text_path
from ..._files.folder import CONFIG, checked_subfolder, require_config
from ..._hub.client import HubOptions, fetch
from ..._load.options import OPTION_NAMES
from ..._save.offloaded import whole_state_dict
from ..._save.pack import pack_to_file
from ...constants import DEFAULT_ALIGN_BYTES, DEFAULT_NUM_WRITE_WORKERS
from .._arguments import initialiser, load_options, one_device, one_dtype, take_load_arguments
from .._weights import (
    BUILDING,
    FileDtypes,
    build_and_load,
    fetch_weights,
    find_weights,
    refuse_adapters,
    shard_names,
    weights_name,
)
from . import _dtypes
from ._classes import holds_several, member_folders, members_of, model_class, named_class

# How diffusers' from_pretrained is to read its own formats: taken so that calls need not be rewritten.
_WITHOUT_MEANING = ("low_cpu_mem_usage", "offload_state_dict", "use_flashpack", "use_safetensors")


def save_model(
    model: Any,
    folder: StrPath,
    *,
    variant: str | None = None,
    target_dtype: torch.dtype | None = None,
    align_bytes: int = DEFAULT_ALIGN_BYTES,
    silent: bool | None = True,
    num_workers: int = DEFAULT_NUM_WRITE_WORKERS,
    max_shard_size: int | str | None = None,
    checksum: str | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write config.json and model[.variant].flashpack into `folder`, which is created; return the weights,
    or with `max_shard_size`, as in `pack_to_file`, the name that shards of them go by. `checksum` as there.

    `state_dict` is saved instead of the model's own. Of a model that holds several, as MultiControlNetModel
    does, each goes to a folder, as diffusers has them: `folder`, then `folder`_1, `folder`_2, ...

    Raises what `pack_to_file` raises, NotADirectoryError when `folder` is a file, FileExistsError for what a
    load would take for one more of several models, and ValueError for a model with PEFT adapters inside or a
    quantizer that cannot save it, and for a state dict of several models.
    """
    destination = Path(text_path(folder))
    if destination.exists() and not destination.is_dir():
        raise NotADirectoryError(f"expected a folder to save to, not a file: {destination}")
    if state_dict is not None and holds_several(type(model)):
        raise ValueError(f"state_dict: {type(model).__name__} holds several models; save them one by one")
    members = members_of(model, destination)
    states = [_state_of(member, state_dict) for member in members.values()]
    for (place, member), (state, metadata) in zip(members.items(), states, strict=True):
        member.save_config(place)
        pack_to_file(
            state,
            place / weights_name(variant),
            target_dtype,
            None,
            align_bytes,
            silent,
            num_workers,
            metadata=metadata,
            max_shard_size=max_shard_size,
            checksum=checksum,
        )
    return destination / weights_name(variant)


def _state_of(model: Any, given: Mapping[str, Tensor] | None) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """The state dict, of a quantized model as its quantizer stores it, with what it notes beside it."""
    refuse_adapters(model)
    state = whole_state_dict(model) if given is None else given
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return state, {}
    if not quantizer.is_serializable:
        method = quantizer.quantization_config.quant_method
        raise ValueError(
            f"{type(model).__name__} cannot be saved: its quantizer ({method}) does not support it"
        )
    state, metadata = quantizer.get_state_dict_and_metadata(state, safe_serialization=True)
    return state, {key: value if isinstance(value, str) else str(value) for key, value in metadata.items()}


def load_model(
    cls: Any,
    /,
    pretrained_model_name_or_path: StrPath,
    device: Any = None,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    quantization_config: Any = None,
    output_loading_info: bool = False,
    **arguments: Any,
) -> Any:
    """A model of `cls` from a folder or a repository, in eval mode, on `device` (default: the CPU).

    `dtype` casts as diffusers does, modules kept in float32 aside; the default keeps the file's dtypes.
    `arguments`: hub options, options of `assign_from_file`, and values that override the config's. A
    quantized model goes through diffusers' own loader. `output_loading_info=True` returns the model and a
    dict of the missing and the unexpected names; parameters that are missing are then initialised by the
    module instead of refused, unless the options say how strict to be.

    What neither takes has no effect, and a warning names it.

    Raises ValueError for names, shapes or dtypes that do not fit, FlashPackError or ChecksumError for an
    unsound file, FileNotFoundError for a folder without weights, and what huggingface_hub raises.
    """
    if holds_several(cls):
        given = {name: value for name, value in locals().items() if name != "arguments"}
        return _load_several(**given, **arguments)
    target, wanted = one_device(device, device_map), one_dtype(dtype, torch_dtype)
    hub = HubOptions.take(arguments)
    path = fetch_weights(pretrained_model_name_or_path, hub, subfolder, variant, [CONFIG])
    options = load_options(cls, take_load_arguments(arguments), target, reports=output_loading_info)
    require_config(path.parent)
    config = cls.load_config(path.parent)
    if quantization_config is not None or config.get("quantization_config") is not None:
        own = {
            "device_map": None if target is None else {"": target},
            "output_loading_info": output_loading_info,
        }
        return _load_quantized(
            cls, path, dtype=wanted, quantization_config=quantization_config, **own, **arguments
        )

    build_from = initialiser(cls, cls.from_config)
    values = _config_values(cls.__init__ if build_from == cls.from_config else build_from, arguments)

    def build(stored: FileDtypes) -> nn.Module:
        with _dtypes.default_dtype(wanted or _dtypes.main_dtype(cls, stored)):
            return cast(nn.Module, build_from(config, **values))

    model: Any
    model, info = build_and_load(build, path, options, mend=_mend_names)
    _dtypes.cast(model, wanted, info.missing_keys)
    model.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
    return (model, info.as_dict()) if output_loading_info else model


def _config_values(initialise: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that `initialise` takes. Warns of others, unless they ask for nothing."""
    named, takes_any = keywords_of(initialise)
    if not takes_any:
        asked = {name for name, value in arguments.items() if value is not None and value is not False}
        known = named | OPTION_NAMES | keywords_of(load_model)[0]
        warn_of_unused(asked - named - set(_WITHOUT_MEANING), known)
    return filter_kwargs_for_method(arguments, initialise)


def _load_several(
    cls: Any,
    pretrained_model_name_or_path: StrPath,
    *,
    subfolder: str | None,
    variant: str | None,
    output_loading_info: bool,
    **arguments: Any,
) -> Any:
    """A model that holds several, from the folders that `save_model` makes of them."""
    if output_loading_info:
        raise ValueError(f"output_loading_info: {cls.__name__} holds several models; load them one by one")
    inside = checked_subfolder(subfolder)
    files = (CONFIG, weights_name(variant), *shard_names(variant))
    patterns = [f"{inside}*/{name}" for name in files]
    folder = fetch(pretrained_model_name_or_path, HubOptions.take(arguments), patterns) / inside
    find_weights(folder, variant)
    places = itertools.takewhile(lambda place: (place / CONFIG).is_file(), member_folders(folder))
    classes = {place: model_class(place, *named_class(place)) for place in places}
    return cls([load_model(each, place, variant=variant, **arguments) for place, each in classes.items()])


def _mend_names(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Rename what older versions of the class called otherwise, as diffusers does for its own files."""
    mend = getattr(model, "_fix_state_dict_keys_on_load", None)
    if mend is not None:
        mend(tensors)


def _load_quantized(cls: Any, path: Path, **arguments: Any) -> Any:
    """Load by way of safetensors, so that diffusers' quantizers see the file they expect."""
    given = {name: value for name, value in arguments.items() if value is not None}
    with TemporaryDirectory(prefix="flashpack-") as scratch:
        revert_from_flashpack(path, Path(scratch, "diffusion_pytorch_model.safetensors"))
        shutil.copyfile(path.parent / CONFIG, Path(scratch, CONFIG))
        with BUILDING:
            loaded = cls.from_pretrained(scratch, **given)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.register_to_config(_name_or_path=str(path.parent))
    return loaded
