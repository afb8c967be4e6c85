"""Integrations with other libraries, each in a package of its name: imported when asked for, never before."""

from __future__ import annotations

from ..utils import diffusers_is_available, transformers_is_available


def patch_integrations() -> None:
    """Add from_pretrained_flashpack and save_pretrained_flashpack to diffusers' and transformers' classes.

    To AutoModel and its kin as well, of the libraries that are installed. Their from_pretrained, and that of
    transformers' models, then takes use_flashpack=True. All else works as ever. Any number of calls, before
    or after the libraries are imported, come to the same.
    """
    if diffusers_is_available():
        from .diffusers import patch_diffusers_auto_model

        patch_diffusers_auto_model()
    if transformers_is_available():
        from .transformers import patch_transformers_auto_model

        patch_transformers_auto_model()
