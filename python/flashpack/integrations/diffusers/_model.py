"""Any diffusers model, or other module with a diffusers config, in a folder: config.json and its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..._model_folder import CONFIG, require_config
from ..._paths import StrPath, text_path
from ..._revert import revert_from_flashpack
from ..._save import pack_to_file
from ...constants import DEFAULT_ALIGN_BYTES, DEFAULT_NUM_WRITE_WORKERS
from .._arguments import initialiser, load_options, one_device, one_dtype, take_load_arguments
from .._hub import HubOptions
from .._weights import BUILDING, FileDtypes, build_and_load, fetch_weights, refuse_adapters, weights_name
from . import _dtypes


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
) -> Path:
    """Write config.json and model[.variant].flashpack into `folder`, which is created; return the weights,
    or with `max_shard_size`, as in `pack_to_file`, the name that shards of them go by. `checksum` as there.

    Raises what `pack_to_file` raises, NotADirectoryError when `folder` is a file, and ValueError for a
    model with PEFT adapters inside or a quantizer that cannot save it.
    """
    destination = Path(text_path(folder))
    if destination.exists() and not destination.is_dir():
        raise NotADirectoryError(f"expected a folder to save to, not a file: {destination}")
    state, metadata = _state_of(model)
    model.save_config(destination)
    path = destination / weights_name(variant)
    pack_to_file(
        state,
        path,
        target_dtype,
        None,
        align_bytes,
        silent,
        num_workers,
        metadata=metadata,
        max_shard_size=max_shard_size,
        checksum=checksum,
    )
    return path


def _state_of(model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict, of a quantized model as its quantizer stores it, with what it notes beside it."""
    refuse_adapters(model)
    state = model.state_dict()
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

    Raises ValueError for names, shapes or dtypes that do not fit, FlashPackError or ChecksumError for an
    unsound file, FileNotFoundError for a folder without weights, and what huggingface_hub raises.
    """
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

    def build(stored: FileDtypes) -> nn.Module:
        with _dtypes.default_dtype(wanted or _dtypes.main_dtype(cls, stored)):
            return cast(nn.Module, initialiser(cls, cls.from_config)(config, **arguments))

    model: Any
    model, info = build_and_load(build, path, options, mend=_mend_names)
    _dtypes.cast(model, wanted, info.missing_keys)
    model.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
    return (model, info.as_dict()) if output_loading_info else model


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
