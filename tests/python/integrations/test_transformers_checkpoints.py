"""Checkpoints that FlashPack did not save: converted safetensors, other names, experts, quantised models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flashpack
import peft
import pytest
import torch
from flashpack.commands import convert_to_flashpack
from flashpack.integrations.transformers import load_model, save_model
from helpers import assert_same, read_footer
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors
from tiny_architectures import config_of
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertModel,
    BitNetQuantConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100Model,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3VLMoeForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin
from transformers_models import (
    BUILDERS,
    VOCABULARY,
    FlashPackBert,
    FlashPackMaskedBert,
    assert_same_outputs,
    bert_config,
    llama_config,
    saved_config,
    shipped_minilm,
    ties,
)


def m2m_config() -> M2M100Config:
    sides = ("layers", "attention_heads", "ffn_dim")
    sizes = {f"{part}_{side}": 2 for part in ("encoder", "decoder") for side in sides}
    return M2M100Config(vocab_size=VOCABULARY, d_model=16, max_position_embeddings=40, **sizes)


def converted(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """The folder of an ordinary save, with a FlashPack file made from its safetensors."""
    model.save_pretrained(folder, **options)
    convert_to_flashpack(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    return folder


# Converted from safetensors


@pytest.mark.parametrize("name", BUILDERS)
def test_converted_checkpoints(name: str, tmp_path: Path) -> None:
    model = BUILDERS[name]().eval()
    loaded = type(model).from_pretrained_flashpack(converted(model, tmp_path))
    assert_same(loaded.state_dict(), model.state_dict())
    assert ties(loaded) == ties(model)
    assert_same_outputs(loaded, model)


def test_converted_shards(tmp_path: Path) -> None:
    model = BUILDERS["llama"]().eval()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = type(model).from_pretrained_flashpack(converted(model, tmp_path, max_shard_size="8KB"))
    assert_same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("given", [False, True])
def test_generation_settings_of_the_configuration(given: bool, tmp_path: Path) -> None:
    model = LlamaForCausalLM(llama_config())
    model.save_pretrained(tmp_path)
    convert_to_flashpack(tmp_path)
    (tmp_path / "generation_config.json").unlink()  # older models have none
    settings = {"num_beams": 3, "max_length": 12, "no_repeat_ngram_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(saved_config(tmp_path) | settings))
    arguments = {"config": llama_config()} if given else {}
    expected = LlamaForCausalLM.from_pretrained(tmp_path, **arguments).generation_config
    loaded = load_model(LlamaForCausalLM, tmp_path, **arguments).generation_config
    assert loaded.to_dict() == expected.to_dict()
    assert {name: getattr(loaded, name) for name in settings} == settings


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["bert", "llama", "m2m"])
def test_buffers_that_are_not_persistent_are_computed(
    name: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    configs = {"bert": bert_config(), "llama": llama_config(), "m2m": m2m_config()}
    kind: Any = {"bert": BertForMaskedLM, "llama": LlamaForCausalLM, "m2m": M2M100Model}[name]
    model = kind(configs[name]).bfloat16()
    computed = {each: buffer for each, buffer in model.named_buffers() if each not in model.state_dict()}
    assert computed
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    # Older checkpoints have them, of other values, dtypes and shapes.
    older = {each: torch.cat([buffer, buffer + 1]) for each, buffer in computed.items()}
    save_safetensors(load_safetensors(file) | older, file, {"format": "pt"})
    convert_to_flashpack(tmp_path)
    options = {"dtype": dtype, "output_loading_info": True}
    expected, wanted = kind.from_pretrained(tmp_path, **{**options, "dtype": dtype or torch.bfloat16})
    loaded, info = load_model(kind, tmp_path, **options)
    assert_same(dict(loaded.named_buffers()), dict(expected.named_buffers()))
    assert_same(loaded.state_dict(), expected.state_dict())
    assert set(info["unexpected_keys"]) == set(wanted["unexpected_keys"])
    assert_same(load_model(kind, tmp_path, dtype=dtype).state_dict(), loaded.state_dict())


def test_a_base_models_weights_under_a_head(tmp_path: Path) -> None:
    base = BertModel(bert_config(), add_pooling_layer=False).eval()
    converted(base, tmp_path)
    with pytest.raises(ValueError, match=r"Missing 6 parameters: \['cls\.predictions"):
        FlashPackMaskedBert.from_pretrained_flashpack(tmp_path)
    loaded, info = FlashPackMaskedBert.from_pretrained_flashpack(
        tmp_path, strict=False, output_loading_info=True
    )
    assert all(name.startswith("cls.predictions.") for name in info["missing_keys"])
    assert len(info["missing_keys"]) == 6
    assert info["unexpected_keys"] == []
    assert_same(loaded.bert.state_dict(), base.state_dict())
    assert ties(loaded) == ties(FlashPackMaskedBert(bert_config()))
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())
    assert not loaded.training
    assert loaded.name_or_path == loaded.config.name_or_path == str(tmp_path)


def test_the_base_of_a_model_with_a_head(tmp_path: Path) -> None:
    model = BertForMaskedLM(bert_config()).eval()
    converted(model, tmp_path)
    for options in ({}, {"ignore_prefixes": ["cls."]}):
        loaded = FlashPackBert.from_pretrained_flashpack(tmp_path, add_pooling_layer=False, **options)
        assert_same(loaded.state_dict(), model.bert.state_dict())
    with pytest.raises(ValueError, match=r"Could not assign \d+ names: \['cls\.predictions"):
        FlashPackBert.from_pretrained_flashpack(tmp_path, add_pooling_layer=False, strict=True)


def test_a_base_model_with_a_part_of_its_own_missing(tmp_path: Path) -> None:
    converted(BertForMaskedLM(bert_config()), tmp_path)
    with pytest.raises(ValueError, match=r"Missing 2 parameters: \['pooler\.dense\.bias', 'pooler"):
        FlashPackBert.from_pretrained_flashpack(tmp_path, ignore_prefixes=["cls."])


def test_legacy_names(tmp_path: Path) -> None:
    model = BertModel(bert_config()).eval()
    model.save_pretrained(tmp_path)
    legacy = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_safetensors(tmp_path / "model.safetensors").items()
    }
    assert sum(name.endswith(("gamma", "beta")) for name in legacy) == 10
    save_safetensors(legacy, tmp_path / "model.safetensors", {"format": "pt"})
    convert_to_flashpack(tmp_path)
    assert_same(load_model(BertModel, tmp_path).state_dict(), model.state_dict())


def test_experts_that_transformers_merges(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    model = MixtralForCausalLM(config).eval()
    converted(model, tmp_path / "converted")
    names = set(flashpack.load_file(tmp_path / "converted" / "model.flashpack"))
    assert names != set(model.state_dict())  # one tensor for each expert, as the original has them
    loaded = load_model(MixtralForCausalLM, tmp_path / "converted")
    assert_same(loaded.state_dict(), model.state_dict())
    save_model(model, tmp_path / "saved")
    assert_same(load_model(MixtralForCausalLM, tmp_path / "saved").state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_experts_that_are_stored_transposed(dtype: torch.dtype | None, tmp_path: Path) -> None:
    """Under the model's own names, as on the Hub."""
    config = config_of("qwen3_vl_moe")
    config.text_config.moe_intermediate_size = 12  # no square, which would tell nothing
    model = Qwen3VLMoeForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_safetensors(file)
    experts = {
        name: each.transpose(1, 2).contiguous() for name, each in stored.items() if ".experts." in name
    }
    save_safetensors(stored | experts, file, {"format": "pt"})
    convert_to_flashpack(tmp_path)
    expected = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert_same(expected.state_dict(), model.to(dtype).state_dict())
    assert_same(load_model(type(model), tmp_path, dtype=dtype).state_dict(), expected.state_dict())


def test_converted_to_another_dtype(tmp_path: Path) -> None:
    """The configuration still says float32."""
    model = BertModel(bert_config(), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    convert_to_flashpack(tmp_path, dtype="float16")
    direct = load_model(BertModel, tmp_path, add_pooling_layer=False)
    renamed = load_model(BertForMaskedLM, tmp_path, strict=False)
    assert (direct.dtype, renamed.dtype) == (torch.float16, torch.float16)
    assert_same(renamed.bert.state_dict(), direct.state_dict())


@pytest.mark.parametrize("dtype", [None, "auto", torch.float16, torch.bfloat16])
def test_modules_that_a_class_keeps_in_single_precision(dtype: Any, tmp_path: Path) -> None:
    """The checkpoint is wholly in half precision, in which T5's projections overflow."""
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    T5EncoderModel(config).half().save_pretrained(tmp_path)
    convert_to_flashpack(tmp_path)
    loaded = load_model(T5EncoderModel, tmp_path, dtype=dtype)
    expected = T5EncoderModel.from_pretrained(tmp_path, dtype=dtype or "auto")
    assert_same(loaded.state_dict(), expected.state_dict())


# A real model


def test_the_real_minilm(tmp_path: Path) -> None:
    source = shipped_minilm()
    original = BertModel.from_pretrained(source)
    save_model(original, tmp_path / "saved")
    convert_to_flashpack(source, tmp_path / "model.flashpack")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    expected = embeddings(original, source)
    assert expected.isfinite().all()
    for folder in (tmp_path, tmp_path / "saved"):
        loaded = FlashPackBert.from_pretrained_flashpack(folder)
        assert torch.equal(embeddings(loaded, source), expected)


@torch.inference_mode()
def embeddings(model: nn.Module, tokenizer: Path) -> Tensor:
    sentences = ["The train leaves at nine.", "The cat sleeps on the warm windowsill."]
    tokens = AutoTokenizer.from_pretrained(tokenizer)(sentences, padding=True, return_tensors="pt")
    hidden: Tensor = model(**tokens).last_hidden_state
    return hidden


# Quantised models


class HalvesConfig(QuantizationConfigMixin):
    """A stand-in for bitsandbytes: packed weights as plain tensors, and a configuration that says so."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(quant_method="flashpack-halves")
        self.serializable = kwargs.get("serializable", True)


class PackedLinear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        shape, device = linear.weight.shape, linear.weight.device
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.int8, device=device), requires_grad=False)
        self.register_buffer("scale", torch.ones(shape[0], 1, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * self.scale).T.to(x.dtype)


class HalvesQuantizer(HfQuantizer):
    requires_calibration = True

    def _process_model_before_weight_loading(self, model: nn.Module, **_kwargs: Any) -> None:
        for name, module in list(model.named_modules()):
            if name.endswith("_proj"):
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, PackedLinear(module))

    def _process_model_after_weight_loading(self, model: nn.Module, **_kwargs: Any) -> None:
        pass

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        return model.state_dict(), {"halves": "kept"}

    def is_serializable(self) -> bool:
        return bool(self.quantization_config.serializable)

    @property
    def is_trainable(self) -> bool:
        return False


@pytest.fixture
def quantised() -> Iterator[LlamaForCausalLM]:
    register_quantization_config("flashpack-halves")(HalvesConfig)
    register_quantizer("flashpack-halves")(HalvesQuantizer)
    config = llama_config()
    config.quantization_config = HalvesConfig()
    model = LlamaForCausalLM(llama_config())
    quantizer = HalvesQuantizer(config.quantization_config, pre_quantized=True)
    quantizer._process_model_before_weight_loading(model)
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.weight.copy_(torch.randint(-127, 127, module.weight.shape))
            module.scale.uniform_(0.001, 0.01)
    model.config, model.hf_quantizer = config, quantizer
    yield model.eval()
    del AUTO_QUANTIZATION_CONFIG_MAPPING["flashpack-halves"], AUTO_QUANTIZER_MAPPING["flashpack-halves"]


def test_quantised_models_of_plain_tensors(quantised: LlamaForCausalLM, tmp_path: Path) -> None:
    save_model(quantised, tmp_path)
    assert saved_config(tmp_path)["quantization_config"]["quant_method"] == "flashpack-halves"
    assert read_footer(tmp_path / "model.flashpack")["metadata"] == {"halves": "kept"}
    loaded = load_model(LlamaForCausalLM, tmp_path)
    assert isinstance(loaded.hf_quantizer, HalvesQuantizer)
    assert_same(loaded.state_dict(), quantised.state_dict())
    assert_same_outputs(loaded, quantised)


def test_an_adapter_beside_a_quantised_model(quantised: LlamaForCausalLM, tmp_path: Path) -> None:
    save_model(quantised, tmp_path)
    adapter = peft.LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False)
    peft.get_peft_model(LlamaForCausalLM(llama_config()), adapter).save_pretrained(tmp_path)
    loaded = load_model(LlamaForCausalLM, tmp_path)
    assert loaded.active_adapters() == ["default"]
    quantised.load_adapter(str(tmp_path))
    assert_same(loaded.state_dict(), quantised.state_dict())


def test_quantised_models_that_cannot_be_serialised(quantised: LlamaForCausalLM, tmp_path: Path) -> None:
    quantised.hf_quantizer.quantization_config.serializable = False
    with pytest.raises(ValueError, match="cannot serialise"):
        save_model(quantised, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_quantised_model_of_transformers_own(tmp_path: Path) -> None:
    """BitNet's layers pack four ternary weights to a byte; it needs no other library."""
    config = llama_config()
    config.quantization_config = BitNetQuantConfig(modules_to_not_convert=["lm_head"]).to_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in LlamaForCausalLM(llama_config()).state_dict().items():
        if name.endswith("_proj.weight"):
            state[name] = torch.randint(0, 255, (tensor.shape[0] // 4, tensor.shape[1]), dtype=torch.uint8)
            state[f"{name}_scale"] = torch.ones(1)
        else:
            state[name] = tensor
    original = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=dict(state)).eval()
    save_model(original, tmp_path)
    loaded = load_model(LlamaForCausalLM, tmp_path)
    assert_same(loaded.state_dict(), original.state_dict())
    assert loaded.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8


def test_an_unstorable_tensor_is_refused_by_name(tmp_path: Path) -> None:
    model = BertModel(bert_config())
    sparse = torch.eye(16).to_sparse()
    model.pooler.dense.weight = nn.Parameter(sparse)
    with pytest.raises(ValueError, match=r"pooler\.dense\.weight"):
        save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())
