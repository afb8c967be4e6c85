"""Models quantised by bitsandbytes and torchao themselves, on the CPU, against the libraries' own files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import beside
import pytest
import torch
from flashpack.integrations.transformers import load_model, save_model
from processes import environment, python, succeed
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

RELEASES = ["bitsandbytes==0.50.2", "torchao==0.18.0"]


def quantization(kind: str) -> Any:
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if kind == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(version=2))


def compare(folder: str, kind: str) -> None:
    """What the model says after a round trip is what it says after one through safetensors."""
    plain, ours, theirs = (f"{folder}/{name}" for name in ("plain", "ours", "theirs"))
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    ).to(torch.bfloat16).save_pretrained(plain)
    model = LlamaForCausalLM.from_pretrained(
        plain, quantization_config=quantization(kind), dtype=torch.bfloat16, device_map="cpu"
    )
    model.save_pretrained(theirs)
    save_model(model, ours)
    loaded = load_model(LlamaForCausalLM, ours, device="cpu")
    expected = LlamaForCausalLM.from_pretrained(theirs, device_map="cpu")
    kinds = [type(each.model.layers[0].mlp.up_proj.weight) for each in (loaded, expected)]
    assert kinds[0] is kinds[1] is not torch.nn.Parameter
    words = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(loaded(words).logits, expected(words).logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4", "torchao"])
def test_round_trips(kind: str, tmp_path: Path) -> None:
    folder = beside.install("quantizers", RELEASES)
    env = environment(PYTHONPATH=os.pathsep.join([str(folder), *filter(None, sys.path)]))
    program = "import sys, test_quantizers as t; t.compare(*sys.argv[1:])"
    succeed(python("-c", program, tmp_path, kind, env=env))
