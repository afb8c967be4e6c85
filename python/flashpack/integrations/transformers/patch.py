"""0.4.5's home of the patches."""

from ._auto import patch_transformers_auto_model

patch_auto_factory = patch_transformers_auto_model

__all__ = ["patch_auto_factory", "patch_transformers_auto_model"]
