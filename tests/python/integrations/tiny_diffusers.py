"""Tiny configurations of diffusers' models, of every family, and the models and pipelines that they make.

A name is a class's, with a word behind a colon where there are several configurations of it.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

# In this file, as objects of JSON; most sizes are the smallest that the class allows.
CONFIGS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
)


def class_of(name: str) -> Any:
    """The class of a configuration."""
    found: Any = getattr(diffusers, name.partition(":")[0])
    assert inspect.isclass(found), name
    return found


def build(name: str) -> Any:
    """A model of that configuration, the same every time, none of whose parameters is zero everywhere."""
    torch.manual_seed(0)
    model = class_of(name)(**CONFIGS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    return model


_TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
_T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 9}

ENCODERS: dict[str, dict[str, Any]] = {
    "BertModel": {**_TEXT, "vocab_size": 9},
    "CLIPTextModel": {**_TEXT, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1},
    "CLIPTextModelWithProjection": {**_TEXT, "vocab_size": 9, "projection_dim": 8},
    "CLIPVisionModelWithProjection": {**_TEXT, "image_size": 4, "patch_size": 2, "projection_dim": 8},
    "T5EncoderModel": {**_T5, "feed_forward_proj": "gated-gelu"},
    "UMT5EncoderModel": _T5,
}

_STABLE = {"vae": "AutoencoderKL", "text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel"}
_FLOW = "FlowMatchEulerDiscreteScheduler"
_T5_TEXT = {"text_encoder": "T5EncoderModel"}
_TWO = {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel", "vae": "AutoencoderKL"}
_PROJECTION = "CLIPTextModelWithProjection"

# Names of configurations by component; a list of them is for one component that holds several models.
PIPELINES: dict[str, dict[str, Any]] = {
    "DDPMPipeline": {"unet": "UNet2DModel", "scheduler": "DDPMScheduler"},
    "DiTPipeline": {"transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL"},
    "StableDiffusionPipeline": _STABLE,
    "StableDiffusionControlNetPipeline": {**_STABLE, "controlnet": ["ControlNetModel"] * 2},
    "StableDiffusionAdapterPipeline": {**_STABLE, "adapter": ["T2IAdapter"] * 3},
    "StableDiffusionXLPipeline": {**_STABLE, "text_encoder_2": _PROJECTION},
    "StableDiffusion3Pipeline": {
        "transformer": "SD3Transformer2DModel:3.5",
        "vae": "AutoencoderKL",
        "text_encoder": _PROJECTION,
        "text_encoder_2": _PROJECTION,
        "text_encoder_3": "T5EncoderModel",
        "scheduler": _FLOW,
    },
    "FluxPipeline": {**_TWO, "transformer": "FluxTransformer2DModel", "scheduler": _FLOW},
    "PixArtAlphaPipeline": {**_T5_TEXT, "transformer": "PixArtTransformer2DModel", "vae": "AutoencoderKL"},
    "LTXPipeline": {
        **_T5_TEXT,
        "transformer": "LTXVideoTransformer3DModel",
        "vae": "AutoencoderKLLTXVideo",
        "scheduler": _FLOW,
    },
    "WanPipeline": {
        "text_encoder": "UMT5EncoderModel",
        "transformer": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
        "scheduler": "UniPCMultistepScheduler",
    },
    "AnimateDiffPipeline": {**_STABLE, "unet": "UNetMotionModel", "motion_adapter": "MotionAdapter"},
    "StableVideoDiffusionPipeline": {
        "vae": "AutoencoderKLTemporalDecoder",
        "image_encoder": "CLIPVisionModelWithProjection",
        "unet": "UNetSpatioTemporalConditionModel",
        "scheduler": "EulerDiscreteScheduler",
    },
    "CogVideoXPipeline": {
        **_T5_TEXT,
        "transformer": "CogVideoXTransformer3DModel:learned",
        "vae": "AutoencoderKLCogVideoX",
    },
    "HunyuanDiTPipeline": {
        "text_encoder": "BertModel",
        "text_encoder_2": "T5EncoderModel",
        "transformer": "HunyuanDiT2DModel",
        "vae": "AutoencoderKL",
    },
    "StableAudioPipeline": {
        **_T5_TEXT,
        "vae": "AutoencoderOobleck",
        "projection_model": "StableAudioProjectionModel",
        "transformer": "StableAudioDiTModel",
    },
}

# Whose several models diffusers itself cannot save, or not load.
SEVERAL: dict[str, dict[str, Any]] = {
    "StableDiffusion3ControlNetPipeline": {
        **PIPELINES["StableDiffusion3Pipeline"],
        "controlnet": ["SD3ControlNetModel"] * 2,
    },
    "FluxControlNetPipeline": {**PIPELINES["FluxPipeline"], "controlnet": ["FluxControlNetModel"] * 2},
    "HunyuanDiTControlNetPipeline": {
        **PIPELINES["HunyuanDiTPipeline"],
        "controlnet": ["HunyuanDiT2DControlNetModel"] * 2,
    },
    "StableDiffusionXLControlNetUnionPipeline": {
        **PIPELINES["StableDiffusionXLPipeline"],
        "controlnet": ["ControlNetUnionModel"] * 2,
    },
}


def encoder(name: str) -> Any:
    """A model of transformers, the same every time."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return kind(kind.config_class(**ENCODERS[name])).eval()


def pipeline(name: str) -> Any:
    """The pipeline of that name in PIPELINES or SEVERAL; what is left out is None."""
    components: dict[str, Any] = {"scheduler": "DDIMScheduler", **(PIPELINES | SEVERAL)[name]}
    kind = getattr(diffusers, name)
    return kind(**{**absent(name), **{place: _component(each) for place, each in components.items()}})


def absent(name: str) -> dict[str, None]:
    """The components of the pipeline that are left out, as diffusers wants to be told."""
    needed, optional = getattr(diffusers, name)._get_signature_keys(getattr(diffusers, name))
    given = {"scheduler", *(PIPELINES | SEVERAL)[name]}
    return dict.fromkeys(place for place in needed if place not in given and place not in optional)


def _component(name: str | list[str]) -> Any:
    if isinstance(name, list):
        members = [build(each) for each in name]
        for number, member in enumerate(members):
            member.load_state_dict({key: value + number for key, value in member.state_dict().items()})
        return members
    if name in ENCODERS:
        return encoder(name)
    return build(name) if name in CONFIGS else getattr(diffusers, name)()
