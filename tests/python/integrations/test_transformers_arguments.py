"""Arguments that transformers' own `from_pretrained` takes mean the same to a load of FlashPack files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flashpack.integrations.transformers as integration
import pytest
import torch
from flashpack.commands import convert_to_flashpack
from flashpack.integrations.transformers import load_model
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM
from transformers_models import llama_config, saved_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in both formats, with settings of generation in config.json, as in older ones."""
    LlamaForCausalLM(llama_config()).save_pretrained(tmp_path)
    convert_to_flashpack(tmp_path)
    settings = {"num_beams": 3, "no_repeat_ngram_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(saved_config(tmp_path) | settings))
    return tmp_path


# Settings of generation


@pytest.mark.parametrize("dtype", [None, torch.float16])  # straight to the model, and through transformers
@pytest.mark.parametrize("has_generation_config", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": 7},
        {"pad_token_id": 5, "bos_token_id": None},
        {"use_cache": False},
        {"output_attentions": True, "attn_implementation": "eager"},
        {"config": llama_config(), "attn_implementation": "eager"},
        {"eos_token_id": 7, "generation_config": GenerationConfig(max_length=9, eos_token_id=3)},
    ],
    ids=" ".join,
)
def test_settings_of_generation_that_are_given(
    settings: dict[str, Any], has_generation_config: bool, dtype: Any, folder: Path
) -> None:
    if not has_generation_config:
        (folder / "generation_config.json").unlink()
    expected = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, **settings)
    loaded = load_model(LlamaForCausalLM, folder, dtype=dtype, **settings)
    auto = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **settings)
    packed = integration.AutoModelForCausalLM.from_pretrained_flashpack(folder, dtype=dtype, **settings)
    for one, other in ((loaded, expected), (packed, auto)):
        assert one.generation_config.to_dict() == other.generation_config.to_dict()
        assert one.config.to_dict() == other.config.to_dict()
