"""What save_pretrained_flashpack takes as transformers' save_pretrained does, and offloaded models."""

from __future__ import annotations

from pathlib import Path

import flashpack
import pytest
import torch
from flashpack.integrations.transformers import load_model, save_model
from helpers import assert_same
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers_models import FlashPackBert, FlashPackLlama, bert_config, llama_config


def test_a_state_dict_of_ones_own(tmp_path: Path) -> None:
    model = FlashPackBert(bert_config())
    averaged = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "own", state_dict=dict(averaged))
    with pytest.warns(UserWarning, match=r"ignores .*safe_serialization.*save_function"):
        model.save_pretrained_flashpack(
            tmp_path / "packed", state_dict=averaged, save_function=torch.save, safe_serialization=False
        )
    expected = FlashPackBert.from_pretrained(tmp_path / "own").state_dict()
    assert_same(FlashPackBert.from_pretrained_flashpack(tmp_path / "packed").state_dict(), expected)
    assert_same(expected, averaged)


@pytest.mark.parametrize("name", ["target_dtyp", "dtype", "metadata", "max_shard_sizes"])
def test_keywords_that_nobody_knows(name: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=name):
        FlashPackBert(bert_config()).save_pretrained_flashpack(tmp_path / "none", **{name: None})
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_heeded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="distributed_checkpoint=True"):
        FlashPackBert(bert_config()).save_pretrained_flashpack(tmp_path / "none", distributed_checkpoint=True)
    assert not (tmp_path / "none").exists()


def test_the_original_format(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "own")
    save_model(model, tmp_path / "packed", save_original_format=True)
    stored = flashpack.load_file(tmp_path / "own" / "model.safetensors")
    assert_same(flashpack.load_file(tmp_path / "packed" / "model.flashpack"), stored)
    assert_same(load_model(MixtralForCausalLM, tmp_path / "packed").state_dict(), model.state_dict())


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_is_partly_on_disk(tied: bool, tmp_path: Path) -> None:
    model = LlamaForCausalLM(llama_config(tied=tied)).eval()
    model.save_pretrained(tmp_path / "own")
    parts = ("embed_tokens", "layers.0", "norm", "rotary_emb")
    places = {**{f"model.{part}": "cpu" for part in parts}, "model.layers.1": "disk", "lm_head": "cpu"}
    offloaded = LlamaForCausalLM.from_pretrained(
        tmp_path / "own", device_map=places, offload_folder=str(tmp_path / "offloaded")
    )
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    save_model(offloaded, tmp_path / "packed")
    loaded = FlashPackLlama.from_pretrained_flashpack(tmp_path / "packed")
    assert_same(loaded.state_dict(), model.state_dict())
    flashpack.pack_to_file(offloaded, tmp_path / "file.flashpack")
    assert_same(flashpack.load_file(tmp_path / "file.flashpack"), model.state_dict())
