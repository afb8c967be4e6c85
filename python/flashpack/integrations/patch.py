"""0.4.5's home of patch_integrations."""

from . import patch_integrations

__all__ = ["patch_integrations"]
