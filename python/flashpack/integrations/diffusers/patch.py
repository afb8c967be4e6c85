"""0.4.5's home of the patches: one call makes both."""

from ._auto import patch_diffusers_auto_model

patch_diffusers_pipeline_loading_utils = patch_diffusers_auto_model

__all__ = ["patch_diffusers_auto_model", "patch_diffusers_pipeline_loading_utils"]
