"""A transformers model that FlashPack loaded behaves like any other."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import peft
import pytest
import torch
from flashpack.integrations.transformers import load_model
from helpers import assert_same, bits
from transformers import LlamaForCausalLM
from transformers_models import (
    VOCABULARY,
    FlashPackBert,
    FlashPackLlama,
    assert_same_outputs,
    bert_config,
    llama_config,
    ties,
)


@pytest.fixture
def original() -> FlashPackLlama:
    return FlashPackLlama(llama_config(tied=True)).eval()


@pytest.fixture(params=["mapped", "eager", "converted"])
def loaded(request: pytest.FixtureRequest, folder: Path) -> FlashPackLlama:
    """By each of the ways: mapped, read, and through transformers' own loader."""
    options = {"mapped": {}, "eager": {"eager": True}, "converted": {"key_mapping": {"^nothing": "nothing"}}}
    model: FlashPackLlama = FlashPackLlama.from_pretrained_flashpack(folder, **options[request.param])
    return model


@pytest.fixture
def folder(original: FlashPackLlama, tmp_path: Path) -> Path:
    original.save_pretrained_flashpack(tmp_path / "saved")
    return tmp_path / "saved"


def tokens() -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))


def test_saved_as_safetensors(loaded: FlashPackLlama, original: FlashPackLlama, tmp_path: Path) -> None:
    loaded.save_pretrained(tmp_path / "other")
    again = FlashPackLlama.from_pretrained(tmp_path / "other")
    assert_same(again.state_dict(), original.state_dict())
    assert ties(again) == ties(original)


def test_saved_as_flashpack_over_its_own_file(
    loaded: FlashPackLlama, original: FlashPackLlama, folder: Path
) -> None:
    with torch.no_grad():
        loaded.model.norm.weight.add_(1)
    loaded.save_pretrained_flashpack(folder)
    again = FlashPackLlama.from_pretrained_flashpack(folder)
    assert_same(again.state_dict(), loaded.state_dict())
    assert torch.equal(again.model.norm.weight, original.model.norm.weight + 1)


def test_saved_by_torch(loaded: FlashPackLlama, original: FlashPackLlama) -> None:
    whole, state = io.BytesIO(), io.BytesIO()
    torch.save(loaded, whole)
    torch.save(loaded.state_dict(), state)
    whole.seek(0)
    state.seek(0)
    assert_same_outputs(torch.load(whole, weights_only=False), original)
    assert_same(torch.load(state), original.state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copied(clone: object, loaded: FlashPackLlama, original: FlashPackLlama) -> None:
    assert callable(clone)
    other = clone(loaded)
    assert_same_outputs(other, original)
    assert ties(other) == ties(original)
    with torch.no_grad():
        other.model.norm.weight.zero_()
    assert_same(loaded.state_dict(), original.state_dict())


def test_cast(loaded: FlashPackLlama, original: FlashPackLlama) -> None:
    assert_same(loaded.half().state_dict(), copy.deepcopy(original).half().state_dict())
    assert ties(loaded) == ties(original)
    doubled = loaded.float().to(torch.float64)
    assert {parameter.dtype for parameter in doubled.parameters()} == {torch.float64}
    assert doubled(tokens()).logits.dtype == torch.float64


def test_strict_state_dicts(loaded: FlashPackLlama, original: FlashPackLlama) -> None:
    fresh = FlashPackLlama(llama_config(tied=True)).eval()
    fresh.load_state_dict(loaded.state_dict(), strict=True)
    assert_same_outputs(fresh, original)
    loaded.load_state_dict(FlashPackLlama(llama_config(tied=True)).state_dict(), strict=True)
    assert not torch.equal(loaded.lm_head.weight, original.lm_head.weight)


def test_trained_alike(loaded: FlashPackLlama, original: FlashPackLlama, folder: Path) -> None:
    on_disk = (folder / "model.flashpack").read_bytes()
    for model in (loaded, original):
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(tokens(), labels=tokens()).loss.backward()
            assert all(parameter.grad is not None for parameter in model.parameters())
            optimizer.step()
    assert_same(loaded.state_dict(), original.state_dict())
    assert (folder / "model.flashpack").read_bytes() == on_disk


def test_gradient_checkpointing(loaded: FlashPackLlama, original: FlashPackLlama) -> None:
    loaded.gradient_checkpointing_enable()
    assert loaded.is_gradient_checkpointing
    for model in (loaded, original):
        model.train()
        model(tokens(), labels=tokens()).loss.backward()
    for name, parameter in original.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(loaded.get_parameter(name).grad, parameter.grad), name


def test_generating(loaded: FlashPackLlama, original: FlashPackLlama) -> None:
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(tokens(), **options), original.generate(tokens(), **options))


def test_lora_on_top(loaded: FlashPackLlama, original: FlashPackLlama, tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(loaded, config)
    frozen = bits(loaded.model.norm.weight)
    optimizer = torch.optim.SGD([each for each in adapted.parameters() if each.requires_grad], lr=0.1)
    adapted(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    assert bits(loaded.model.norm.weight) == frozen
    adapted.save_pretrained(tmp_path / "adapter")
    on_original = peft.PeftModel.from_pretrained(original, tmp_path / "adapter")
    assert torch.equal(adapted.eval()(tokens()).logits, on_original.eval()(tokens()).logits)
    merged = adapted.merge_and_unload()
    merged.save_pretrained_flashpack(tmp_path / "merged")
    again = FlashPackLlama.from_pretrained_flashpack(tmp_path / "merged")
    assert torch.equal(again(tokens()).logits, merged(tokens()).logits)


def test_adapters_inside_are_not_saved_unnoticed(loaded: FlashPackLlama, tmp_path: Path) -> None:
    loaded.add_adapter(peft.LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(ValueError, match="PEFT adapters"):
        loaded.save_pretrained_flashpack(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_resized_embeddings(loaded: FlashPackLlama) -> None:
    loaded.resize_token_embeddings(VOCABULARY + 4)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded(tokens()).logits.shape[-1] == VOCABULARY + 4


def test_mixed_precision_survives_copies(tmp_path: Path) -> None:
    model = FlashPackBert(bert_config()).bfloat16()
    model.pooler.float()
    model.save_pretrained_flashpack(tmp_path)
    other = copy.deepcopy(FlashPackBert.from_pretrained_flashpack(tmp_path))
    assert_same(other.state_dict(), model.state_dict())


def test_plain_classes_are_no_different(original: FlashPackLlama, folder: Path) -> None:
    model = load_model(LlamaForCausalLM, folder)
    assert type(pickle.loads(pickle.dumps(model))) is LlamaForCausalLM
    assert_same_outputs(model, original)
