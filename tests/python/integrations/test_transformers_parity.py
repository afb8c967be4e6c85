"""FlashPack folders load as transformers loads safetensors: bits, buffers, ties, outputs, reports.

`make parity` compares every architecture with every dtype and head; here are some of each family.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from flashpack.integrations.transformers import load_model
from tiny_architectures import base_class, built, config_of, outputs
from transformers import (
    AutoModel,
    BertForSequenceClassification,
    BlipForConditionalGeneration,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTForCausalLM,
    PixioBackbone,
    PreTrainedModel,
    Qwen2VLForConditionalGeneration,
    T5ForConditionalGeneration,
    ViTForImageClassification,
    WhisperForConditionalGeneration,
)
from transformers_exceptions import DTYPES_LOST
from transformers_parity import compare_classes, differences, saved

ARCHITECTURES = """
    albert apertus aria bamba bart beit bert big_bird biogpt bit bloom clip_text_model
    clip_vision_model codegen cohere convbert data2vec-audio data2vec-text deberta deberta-v2 dinov2
    distilbert donut-swin dpt electra esm falcon falcon_mamba flaubert fnet gemma gemma2 gemma3 gpt2
    gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite hubert idefics3 imagegpt jetmoe led lfm2 llama
    llava longformer longt5 m2m_100 mamba mamba2 marian mbart mistral mixtral mllama mobilebert
    modernbert moonshine mpnet mpt nemotron olmo2 openai-gpt opt paligemma pegasus persimmon phi
    phi3 pixtral prophetnet qwen2 qwen2_audio qwen2_vl qwen3 reformer rembert roberta roformer rwkv
    sew siglip_vision_model splinter starcoder2 swinv2 switch_transformers t5 unispeech vit voxtral
    wav2vec2 wav2vec2-conformer wavlm whisper xglm xlm xlnet yoso
""".split()  # noqa: SIM905 (a line each would fill pages)
OLDER = transformers.__version__.startswith("5.10.")
if OLDER:  # whose model registers parameters as buffers, of which from_pretrained makes plain tensors
    ARCHITECTURES.remove("falcon_mamba")


@pytest.fixture(autouse=True)
def _same_memory_each_time() -> Iterator[None]:
    """Memory that neither library initializes is filled alike."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_model_of_half_precision(model_type: str, tmp_path: Path) -> None:
    kind = base_class(model_type)
    built(kind, config_of(model_type)).save_pretrained(tmp_path / "first")
    model = kind.from_pretrained(tmp_path / "first", dtype=torch.bfloat16)
    folders = saved(model, tmp_path)
    for dtype in (torch.float16 if model_type in DTYPES_LOST else None, torch.float32):
        expected = kind.from_pretrained(folders["safetensors"], dtype=dtype)
        for name in ("packed", "converted"):
            actual = load_model(kind, folders[name], dtype=dtype)
            assert list(differences(actual, expected)) == []
    says, wanted = outputs(actual), outputs(expected)
    assert len(says) == len(wanted) > 0
    assert all(torch.equal(one, other) for one, other in zip(says, wanted, strict=True))


def test_tables_of_frequencies(tmp_path: Path) -> None:
    """As long as real ones, of which a half-precision frequency makes noise."""
    config = GPTJConfig(vocab_size=9, n_positions=2048, n_embd=64, n_layer=1, n_head=1, rotary_dim=64)
    folders = saved(GPTJModel(config).bfloat16(), tmp_path)
    expected = GPTJModel.from_pretrained(folders["safetensors"])
    assert list(differences(load_model(GPTJModel, folders["packed"]), expected)) == []


# A file of one class in a model of another


HEADS = [
    BertForSequenceClassification,
    BlipForConditionalGeneration,  # whose text model is no part of the base, with tied names
    GPT2LMHeadModel,
    LlamaForCausalLM,
    OPTForCausalLM,
    PixioBackbone,  # with a norm of its own under the name of one of the base's
    T5ForConditionalGeneration,
    WhisperForConditionalGeneration,
]
if not OLDER:  # whose own from_pretrained leaves the base without weights
    HEADS += [Qwen2VLForConditionalGeneration, ViTForImageClassification]


@pytest.mark.parametrize("head", HEADS)
def test_the_base_of_a_head_and_a_head_on_the_base(head: type[PreTrainedModel], tmp_path: Path) -> None:
    model_type = head.config_class.model_type
    config, base = config_of(model_type), base_class(model_type)
    assert list(compare_classes(head, base, config, tmp_path / "head")) == []
    assert list(compare_classes(base, head, config, tmp_path / "base")) == []


def test_a_counter_that_became_a_float(tmp_path: Path) -> None:
    """As transformers makes one of a batch norm's where it keeps a module in single precision."""
    model = built(base_class("resnet"), config_of("resnet"))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked = torch.tensor(3.0)
    folders = saved(model, tmp_path)
    expected = type(model).from_pretrained(folders["safetensors"])
    assert list(differences(load_model(type(model), folders["packed"]), expected)) == []


def test_a_head_on_the_base_of_another(tmp_path: Path) -> None:
    config = config_of("gpt2")
    assert list(compare_classes(GPT2LMHeadModel, GPT2ForSequenceClassification, config, tmp_path)) == []
    with pytest.raises(ValueError, match=r"Missing 1 parameters: \['score.weight'\]"):
        load_model(GPT2ForSequenceClassification, tmp_path / "packed")


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_left_over_of_a_head_is_no_error(tied: bool, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    folders = saved(built(LlamaForCausalLM, config), tmp_path)
    expected = AutoModel.from_pretrained(folders["safetensors"])
    kind = type(expected)
    assert list(differences(load_model(kind, folders["packed"]), expected)) == []
    if not tied:
        with pytest.raises(ValueError, match="Could not assign 1 names"):
            load_model(kind, folders["packed"], strict=True)


def test_a_lenient_load_makes_nothing_up_that_the_file_has(tmp_path: Path) -> None:
    config = config_of("qwen2_vl")
    source = built(Qwen2VLForConditionalGeneration, config)
    folders = saved(source, tmp_path)
    actual = load_model(base_class("qwen2_vl"), folders["packed"], strict=False)
    loaded = actual.state_dict()
    for name, tensor in source.model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
