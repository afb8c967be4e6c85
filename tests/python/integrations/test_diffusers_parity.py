"""FlashPack folders load as diffusers loads safetensors: bits, every buffer, ties, dtypes.

`make parity` compares every configuration with every dtype; here are some of each family.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers_parity import compare, compare_pipelines

MODELS = [
    *("UNet1DModel", "UNetMotionModel", "UNetSpatioTemporalConditionModel", "StableCascadeUNet"),
    *("SD3Transformer2DModel:3.5", "FluxTransformer2DModel", "PixArtTransformer2DModel"),
    *("LTX2VideoTransformer3DModel", "OmniGenTransformer2DModel", "StableAudioDiTModel"),
    "CogVideoXTransformer3DModel:learned",
    *("WanTransformer3DModel", "CosmosTransformer3DModel", "LatteTransformer3DModel", "StableAudio3DiTModel"),
    *("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Audio", "AutoencoderOobleck", "ConsistencyDecoderVAE"),
    *("ControlNetUnionModel", "MotionAdapter", "T2IAdapter"),
]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_half_precision(name: str, tmp_path: Path) -> None:
    assert list(compare(name, tmp_path, torch.bfloat16, [None, torch.float32])) == []


@pytest.mark.parametrize("name", ["AutoencoderKLLTXVideo", "WanTransformer3DModel", "SD3Transformer2DModel"])
def test_a_model_of_single_precision(name: str, tmp_path: Path) -> None:
    assert list(compare(name, tmp_path, torch.float32, [torch.bfloat16, torch.float8_e4m3fn])) == []


@pytest.mark.parametrize(
    "name", ["StableDiffusionControlNetPipeline", "StableDiffusion3Pipeline", "WanPipeline"]
)
def test_a_pipeline_of_half_precision(name: str, tmp_path: Path) -> None:
    assert list(compare_pipelines(name, tmp_path, torch.bfloat16)) == []
