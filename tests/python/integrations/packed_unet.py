"""A UNet of diffusers with the mixin, and a folder with one."""

from __future__ import annotations

from pathlib import Path

import tiny_pipelines
from diffusers import UNet2DModel
from flashpack.integrations.diffusers import FlashPackDiffusersModelMixin


class FlashPackUNet(UNet2DModel, FlashPackDiffusersModelMixin):
    """As the documentation says: the mixin comes second."""


def save_unet(folder: Path) -> Path:
    """Save a tiny one to `folder`, and return that."""
    FlashPackUNet.from_config(tiny_pipelines.unet().config).save_pretrained_flashpack(folder)
    return folder
