"""Tiny models built from configurations, and the folders that their libraries save them to."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import nn
from transformers import BertConfig, BertForMaskedLM


def bert() -> BertForMaskedLM:
    """A BERT with a tied head, in eval mode."""
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    model: BertForMaskedLM = BertForMaskedLM(config).eval()
    return model


def unet() -> UNet2DModel:
    """A convolutional UNet, in eval mode."""
    model: UNet2DModel = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
    return model


def save(model: nn.Module, folder: Path, sharded: bool = False, variant: str | None = None) -> Path:
    """The folder that the model's library saves it to, with a tokenizer's files and what is none of it."""
    model.save_pretrained(folder, max_shard_size="10KB" if sharded else "1GB", variant=variant)
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training.log").write_text("none of the model")
    return folder


def outputs(model: nn.Module) -> torch.Tensor:
    """What either of the models makes of one input."""
    with torch.no_grad():
        if isinstance(model, UNet2DModel):
            return model(torch.linspace(-1, 1, 64, dtype=model.dtype).reshape(1, 1, 8, 8), 3).sample
        return model(torch.arange(8).reshape(1, 8)).logits
