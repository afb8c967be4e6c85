"""diffusers: models and whole pipelines, saved to FlashPack files and loaded from them."""

from ._auto import AutoFlashPackModel, patch_diffusers_auto_model
from ._mixin import FlashPackDiffusersModelMixin
from ._model import load_model, save_model
from ._pipeline import FlashPackDiffusionPipeline

__all__ = [
    "AutoFlashPackModel",
    "FlashPackDiffusersModelMixin",
    "FlashPackDiffusionPipeline",
    "load_model",
    "patch_diffusers_auto_model",
    "save_model",
]
