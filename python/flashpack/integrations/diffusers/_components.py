"""One component of a pipeline: a model of diffusers or transformers, or something without weights."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._weights import has_weights
from . import _model
from ._classes import holds_several, is_diffusers_module, is_transformers_model

_LIBRARY_WEIGHTS = (".safetensors", ".bin")

Dtypes = torch.dtype | Mapping[str, Any] | None


@dataclass(frozen=True)
class Loading:
    """How the components of one pipeline are loaded: `arguments` are options of `assign_from_file`."""

    device: torch.device | None
    dtype: Dtypes
    variant: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """What is saved in the folder `place` of a pipeline: a component, or one of the models that one holds."""

    component: str
    place: str
    model: Any


def dtype_of(dtypes: Dtypes, component: str) -> Any:
    """The dtype of one component: its own, else that of "default", else None."""
    return dtypes.get(component, dtypes.get("default")) if isinstance(dtypes, Mapping) else dtypes


def is_packable(component: Any) -> bool:
    """Whether the component has weights. Raises TypeError for a module that no config can rebuild."""
    if not isinstance(component, nn.Module):
        return False
    cls = type(component)
    if not is_transformers_model(cls) and not is_diffusers_module(cls):
        raise TypeError(
            f"{cls.__name__} cannot be saved: it is neither a transformers model nor a diffusers.ConfigMixin"
        )
    return True


def save_weights(component: Any, folder: Path, **options: Any) -> None:
    """Save a packable component: its config and its weights."""
    if is_transformers_model(type(component)):
        from ..transformers._model import save_model

        save_model(component, folder, **options)
    else:
        _model.save_model(component, folder, **options)


def load_weights(cls: type, name: str, folder: Path, loading: Loading, variant: str | None) -> Any:
    """A component of `cls` from its folder. Raises TypeError for a class that neither library can load."""
    options = {"variant": variant, "dtype": dtype_of(loading.dtype, name), **loading.arguments}
    if is_transformers_model(cls):
        from ..transformers._model import load_model

        return load_model(cls, folder, loading.device, **options)
    if is_diffusers_module(cls) or holds_several(cls):
        return _model.load_model(cls, folder, loading.device, **options)
    raise TypeError(f"{folder}: {cls.__name__} is neither a transformers model nor a diffusers.ConfigMixin")


def packed_variants(folder: Path, names: Mapping[str, Any], variant: str | None) -> dict[str, str | None]:
    """Which of the components have a FlashPack file, and of which variant it is to be loaded.

    The plain file stands in where a component has no weights of the variant, in any format. Raises
    FileNotFoundError when no component has any.
    """
    chosen: dict[str, str | None] = {}
    for name in names:
        if variant is not None and has_weights(folder / name, variant):
            chosen[name] = variant
        elif has_weights(folder / name) and not _library_variant(folder / name, variant):
            chosen[name] = None
    if variant is not None and variant not in chosen.values() and not library_variant(folder, names, variant):
        raise FileNotFoundError(
            errno.ENOENT, f"No component has weights of the variant {variant!r}", str(folder)
        )
    return chosen


def library_variant(folder: Path, names: Mapping[str, Any], variant: str | None) -> str | None:
    """`variant` if any of the components has weights of it in a format of diffusers' own, else None."""
    return variant if any(_library_variant(folder / name, variant) for name in names) else None


def _library_variant(folder: Path, variant: str | None) -> bool:
    if variant is None or not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir() if path.suffix in _LIBRARY_WEIGHTS]
    return any(f".{variant}." in name or f".{variant}-" in name for name in names)


def save_parts(
    pipeline: Any, parts: Iterable[Part], folder: Path, save: Callable[[Part, Path], None]
) -> None:
    """Save `pipeline` into `folder`; `save` is called for each part with weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if is_packable(part.model):
            save(part, folder / part.place)
        else:
            part.model.save_pretrained(folder / part.place)
    pipeline.save_config(folder)
