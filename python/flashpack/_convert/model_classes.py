"""Models out of model folders, by the classes of the library that made them. Imports torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from .._files.folder import CONFIG, Library, read_config
from .._files.sources import find_weights_to_convert
from .torch_files import read_state_dict


def load_model(
    folder: Path, library: Library, variant: str | None, arguments: Mapping[str, Any]
) -> nn.Module:
    """The model in `folder` as the library's own from_pretrained loads it, in the dtype of its weights.

    `arguments` are more of from_pretrained's. Raises ImportError without the library, ValueError for a
    configuration that names no model class of it and for weights that do not fill the model, and what
    from_pretrained raises.
    """
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        raise ImportError(
            f"--use-{library} (use_{library}=True) needs the package {library}: pip install {library}"
        ) from error
    find_class = _diffusers_class if library == "diffusers" else _transformers_class
    given: dict[str, Any] = {
        "torch_dtype": _dtype(folder, variant),
        "variant": variant,
        "local_files_only": True,
    }
    if library == "transformers":
        given["dtype"] = given.pop("torch_dtype") or "auto"
        arguments = {"dtype" if name == "torch_dtype" else name: value for name, value in arguments.items()}
    model_class = find_class(module, folder, arguments)
    given |= {**arguments, "output_loading_info": True}
    model, info = model_class.from_pretrained(str(folder), **given)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{folder}: {library} puts the adapter of the folder into the model, which renames its "
            f"weights: convert without --use-{library} (use_{library}=True)"
        )
    missing = sorted(info["missing_keys"])
    if missing:  # the library has made them up
        raise ValueError(
            f"{folder}: {len(missing)} tensors of {type(model).__name__} have no weights: {missing}"
        )
    return cast("nn.Module", model)


def _dtype(folder: Path, variant: str | None) -> torch.dtype | None:
    """What all floating weights are, if they are alike: by itself a library may load them as another."""
    try:
        state = read_state_dict(find_weights_to_convert(folder, variant))
    except (FileNotFoundError, ValueError):
        return None  # the library may know better, or says what is wrong
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def _diffusers_class(module: Any, folder: Path, _: Mapping[str, Any]) -> Any:
    name = read_config(folder).get("_class_name")
    if not isinstance(name, str):
        raise ValueError(f"{folder / CONFIG}: names no diffusers class (_class_name)")
    return _model_class(module, name, module.ModelMixin, folder)


def _transformers_class(module: Any, folder: Path, arguments: Mapping[str, Any]) -> Any:
    config = read_config(folder)
    names = config.get("architectures")
    own_code = "auto_map" in config and arguments.get("trust_remote_code")
    if own_code or (not names and "model_type" in config):
        return module.AutoModel
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ValueError(f"{folder / CONFIG}: names no transformers class (architectures)")
    return _model_class(module, names[0], module.PreTrainedModel, folder)


def _model_class(module: Any, name: str, base: type, folder: Path) -> Any:
    found = getattr(module, name, None)
    if not isinstance(found, type) or not issubclass(found, base):
        raise ValueError(f"{folder / CONFIG}: {name} is no model class of {module.__name__}")
    return found
