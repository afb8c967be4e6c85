"""Models whose class the config names, and the methods that patching adds to diffusers' own classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import diffusers

from ..._core.paths import StrPath
from ..._files.folder import CONFIG, PIPELINE
from ..._hub.client import HubOptions, fetch
from .._arguments import add_switch
from ._classes import is_transformers_model, model_class, named_class
from ._index import read_index
from ._mixin import save_and_push
from ._model import load_model
from ._pipeline import load_pipeline
from ._pipeline_save import save_pipeline


def load_any_model(
    _cls: Any,
    /,
    pretrained_model_or_path: StrPath,
    device: Any = None,
    *,
    subfolder: str | None = None,
    **arguments: Any,
) -> Any:
    """A model of the class that its config names, or the pipeline's index for a `subfolder` of one.

    Arguments and errors are those of `load_model`; ValueError when no class is named, or none of that name
    is found.
    """
    options = HubOptions.take(dict(arguments))
    patterns = [CONFIG, f"*/{CONFIG}", PIPELINE]
    folder = fetch(pretrained_model_or_path, options, patterns)
    cls: Any = _model_class(folder, subfolder)
    if is_transformers_model(cls):
        from ..transformers._model import load_model as load_transformers_model

        return load_transformers_model(
            cls, pretrained_model_or_path, device, subfolder=subfolder, **arguments
        )
    return load_model(cls, pretrained_model_or_path, device, subfolder=subfolder, **arguments)


class AutoFlashPackModel(diffusers.AutoModel):
    """`AutoFlashPackModel.from_pretrained_flashpack(folder)` gives a model of the class that was saved."""

    from_pretrained_flashpack = classmethod(load_any_model)

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: StrPath, **kwargs: Any) -> Any:
        """`diffusers.AutoModel.from_pretrained`, or with `use_flashpack=True` from a FlashPack file."""
        if kwargs.pop("use_flashpack", False):
            return cls.from_pretrained_flashpack(pretrained_model_or_path, **kwargs)
        load: Any = super().from_pretrained
        return load(os.fspath(pretrained_model_or_path), **kwargs)


def patch_diffusers_auto_model() -> None:
    """Give diffusers' models, pipelines and AutoModel the two FlashPack methods.

    `AutoModel.from_pretrained` with `use_flashpack=True` loads as the new method does; nothing else changes.
    May be called any number of times, before or after anything is imported from diffusers.
    """
    methods: list[tuple[Any, Any, Any]] = [
        (diffusers.ModelMixin, save_and_push, load_model),
        (diffusers.DiffusionPipeline, save_pipeline, load_pipeline),
        (diffusers.AutoModel, None, load_any_model),
    ]
    for cls, save, load in methods:
        cls.from_pretrained_flashpack = classmethod(load)
        if save is not None:
            cls.save_pretrained_flashpack = save
    add_switch(diffusers.AutoModel, load_any_model)


def _model_class(folder: Path, subfolder: str | None) -> type:
    place = folder / (subfolder or "")
    entry = None
    if subfolder and (folder / PIPELINE).is_file():
        entry = read_index(folder).entries.get(subfolder)
    library, name = named_class(place) if entry is None else (entry.library, entry.name)
    found: type = model_class(place, library, name)
    return found
