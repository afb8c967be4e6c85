"""Models whose class the config names."""

from __future__ import annotations

import os
from typing import Any

import diffusers

from ..._core.paths import StrPath
from ..._files.folder import CONFIG, PIPELINE, checked_subfolder
from ..._files.sources import pinned
from ..._hub.client import HubOptions, fetch
from .._request import add_switch
from ._classes import model_class
from ._folder import read_index
from .model import load_weights

__all__ = ["AutoFlashPackModel"]


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
    pretrained_model_or_path = pinned(pretrained_model_or_path)
    configs = [CONFIG, PIPELINE, *([f"{checked_subfolder(subfolder)}/{CONFIG}"] if subfolder else [])]
    folder = fetch(pretrained_model_or_path, options, configs)
    entry = None
    if subfolder and (folder / PIPELINE).is_file():
        entry = read_index(folder).entries.get(subfolder)
    cls = model_class(folder / (subfolder or ""), entry)
    return load_weights(cls, pretrained_model_or_path, device, subfolder=subfolder, **arguments)


class AutoFlashPackModel(diffusers.AutoModel):
    """`AutoFlashPackModel.from_pretrained_flashpack(folder)` gives a model of the class that was saved."""

    from_pretrained_flashpack = classmethod(load_any_model)

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: StrPath, **kwargs: Any) -> Any:
        """`diffusers.AutoModel.from_pretrained`, or with `use_flashpack=True` from a FlashPack file."""
        load: Any = super().from_pretrained
        return load(os.fspath(pretrained_model_or_path), **kwargs)


add_switch(AutoFlashPackModel, load_any_model)
