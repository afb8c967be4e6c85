"""A load of a model or a pipeline opens its file once, by whatever road the tensors come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from flashpack.integrations.diffusers import load_model as load_diffusers_model
from flashpack.integrations.diffusers import save_model as save_diffusers_model
from flashpack.integrations.diffusers.pipeline import load_pipeline, save_pipeline
from flashpack.integrations.transformers import AutoModel, load_model, save_model
from opens import Opens
from transformers import LlamaForCausalLM, LlamaModel
from transformers_models import llama_config

ROADS: dict[str, Any] = {
    "straight": lambda folder: load_model(LlamaForCausalLM, folder),
    "straight, eager": lambda folder: load_model(LlamaForCausalLM, folder, eager=True),
    "cast": lambda folder: load_model(LlamaForCausalLM, folder, dtype=torch.float16),
    "of the base alone": lambda folder: load_model(LlamaModel, folder),
    "blocks that are kept": lambda folder: load_model(
        LlamaForCausalLM, folder, dtype=torch.float16, keep_flash_ref_on_model=True
    ),
    "automatic": lambda folder: AutoModel.from_pretrained_flashpack(folder),
}


@pytest.mark.parametrize("load", ROADS.values(), ids=ROADS.keys())
def test_a_model_of_transformers(load: Any, tmp_path: Path) -> None:
    save_model(LlamaForCausalLM(llama_config()), tmp_path)
    with Opens(tmp_path / "model.flashpack") as opens:
        load(tmp_path)
    assert opens.count == 1


def test_a_model_of_diffusers(tmp_path: Path) -> None:
    unet = tiny_pipelines.unet()
    save_diffusers_model(unet, tmp_path)
    with Opens(tmp_path / "model.flashpack") as opens:
        load_diffusers_model(type(unet), tmp_path, dtype=torch.float16)
    assert opens.count == 1


def test_a_pipeline_in_a_file(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.stable_diffusion(tmp_path / "tokenizer")
    save_pipeline(pipeline, tmp_path / "all.flashpack")
    with Opens(tmp_path / "all.flashpack") as opens:
        load_pipeline(type(pipeline), tmp_path / "all.flashpack", dtype=torch.float16)
    assert opens.count == 1
