"""The methods that patching adds to diffusers' own classes."""

from __future__ import annotations

from typing import Any

import diffusers

from .._request import add_switch
from .auto_model import load_any_model
from .model import load_model, save_model
from .pipeline import load_pipeline, save_pipeline


def patch_diffusers_auto_model() -> None:
    """Give diffusers' models, pipelines and AutoModel the two FlashPack methods.

    `AutoModel.from_pretrained` with `use_flashpack=True` loads as the new method does; nothing else changes.
    May be called any number of times, before or after anything is imported from diffusers.
    """
    models: Any = diffusers.ModelMixin
    pipelines: Any = diffusers.DiffusionPipeline
    auto: Any = diffusers.AutoModel
    models.save_pretrained_flashpack = save_model
    pipelines.save_pretrained_flashpack = save_pipeline
    for cls, load in ((models, load_model), (pipelines, load_pipeline), (auto, load_any_model)):
        cls.from_pretrained_flashpack = classmethod(load)
    add_switch(auto, load_any_model)


patch_diffusers_pipeline_loading_utils = patch_diffusers_auto_model  # 0.4.5's name
