"""Tiny language models, each as safetensors, which serving engines load themselves, and as FlashPack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import flashpack
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

VOCABULARY = 128
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,  # one that vLLM's kernels for CPUs have
    "max_position_embeddings": 128,
}
CONFIGURATIONS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_SIZES, tie_word_embeddings=False),
    "tied llama": LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_SIZES, tie_word_embeddings=False),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """The same model in two folders."""

    safetensors: Path
    flashpack: Path


def save(name: str, folder: Path, *, seed: int = 0, max_shard_size: int | None = None) -> Checkpoint:
    """A model of random weights with its tokenizer, by its libraries' own functions."""
    flashpack.patch_integrations()
    torch.manual_seed(seed)
    config = CONFIGURATIONS[name]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    checkpoint = Checkpoint(folder / "safetensors", folder / "flashpack")
    model.save_pretrained(checkpoint.safetensors)
    model.save_pretrained_flashpack(checkpoint.flashpack, max_shard_size=max_shard_size)
    for place in (checkpoint.safetensors, checkpoint.flashpack):
        tokenizer().save_pretrained(place)
    return checkpoint


def tokenizer() -> PreTrainedTokenizerFast:
    """Words are `w0`, `w1`, … by their numbers."""
    words = Tokenizer(
        models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1")
