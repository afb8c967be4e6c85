"""Integrations with other libraries."""

from __future__ import annotations


def patch_integrations() -> None:
    """Teach diffusers and transformers to save and load FlashPack files. Not implemented yet."""
    raise NotImplementedError(
        "the diffusers and transformers integrations are not implemented yet; "
        "pack_to_file and assign_from_file work with their models"
    )
