"""Tiny models and pipelines of diffusers, built from configs, and the image that a pipeline makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE = 32
WORDS = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "<|startoftext|>", "<|endoftext|>"]


def unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def conditional_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIZE,
    )


def dit() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=SIZE // 2,
        num_embeds_ada_norm=1000,  # the pipeline asks for the class after the last of ImageNet
    )


def sd3_transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=16,
    )


MODELS: dict[str, Any] = {
    "unet": unet,
    "conditional_unet": conditional_unet,
    "autoencoder": autoencoder,
    "dit": dit,
    "sd3_transformer": sd3_transformer,
}


def run_model(model: Any) -> torch.Tensor:
    """What the model makes of inputs that are the same every time."""
    generator = torch.Generator().manual_seed(1)
    channels = 3 if isinstance(model, (UNet2DModel, AutoencoderKL)) else 4
    sample = torch.randn(1, channels, 16, 16, generator=generator)
    words = torch.randn(1, 5, 16, generator=generator)
    time = torch.tensor([3])
    with torch.no_grad():
        if isinstance(model, AutoencoderKL):
            result = model(sample)
        elif isinstance(model, UNet2DModel):
            result = model(sample, time)
        elif isinstance(model, UNet2DConditionModel):
            result = model(sample, time, words)
        elif isinstance(model, DiTTransformer2DModel):
            result = model(sample, time, torch.tensor([2]))
        else:
            result = model(sample, words, words[:, 0], time)
    output: torch.Tensor = result.sample
    return output


def write_tokenizer(folder: Path) -> Path:
    """A CLIP tokenizer that knows three letters."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"model_max_length": 8, "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", **settings})
    )
    return folder


def text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=16,
        bos_token_id=6,
        eos_token_id=7,
        pad_token_id=7,
    )
    return CLIPTextModel(config).eval()


def ddpm() -> DDPMPipeline:
    return DDPMPipeline(unet=unet().eval(), scheduler=DDPMScheduler(num_train_timesteps=10))


def dit_pipeline() -> DiTPipeline:
    return DiTPipeline(transformer=dit().eval(), vae=autoencoder().eval(), scheduler=DDIMScheduler())


def stable_diffusion(folder: Path) -> StableDiffusionPipeline:
    """`folder` is where its tokenizer is written first."""
    return StableDiffusionPipeline(
        vae=autoencoder().eval(),
        text_encoder=text_encoder(),
        tokenizer=CLIPTokenizer.from_pretrained(write_tokenizer(folder)),
        unet=conditional_unet().eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def picture(pipeline: Any) -> np.ndarray[Any, Any]:
    """The pipeline's image after two steps, the same every time."""
    pipeline.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}
    if isinstance(pipeline, StableDiffusionPipeline):
        arguments |= {"prompt": "a b c", "height": SIZE, "width": SIZE}
    elif isinstance(pipeline, DiTPipeline):
        arguments |= {"class_labels": [1]}
    result = pipeline(generator=torch.Generator().manual_seed(0), **arguments)
    image: np.ndarray[Any, Any] = result.images[0]
    return image


def states(pipeline: Any) -> dict[str, torch.Tensor]:
    """The tensors of all components, named component.tensor."""
    return {
        f"{component}.{name}": tensor
        for component, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
        for name, tensor in module.state_dict().items()
    }


diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
