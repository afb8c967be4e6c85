"""What the README's readers have themselves: their models, their pipeline."""

from __future__ import annotations

from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DModel

MyDiffusersModel = UNet2DModel
SomeOtherModel = AutoencoderKL


class MyPipeline(DiffusionPipeline):
    """Takes its components as its subclasses declare them."""
