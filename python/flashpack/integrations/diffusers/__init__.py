"""diffusers: models and whole pipelines, saved to FlashPack files and loaded from them."""

from .auto_model import AutoFlashPackModel
from .model import FlashPackDiffusersModelMixin, load_model, save_model
from .patch import patch_diffusers_auto_model
from .pipeline import FlashPackDiffusionPipeline

__all__ = [
    "AutoFlashPackModel",
    "FlashPackDiffusersModelMixin",
    "FlashPackDiffusionPipeline",
    "load_model",
    "patch_diffusers_auto_model",
    "save_model",
]
