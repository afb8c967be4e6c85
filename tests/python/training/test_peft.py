"""PEFT's adapters as FlashPack files: outputs as with PEFT's own, under any name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flashpack
import peft
import pytest
import torch
from flashpack.integrations.peft import load_adapter, save_adapter
from flashpack.integrations.transformers import AutoModel, load_model
from helpers import assert_same, read_footer
from torch import Tensor
from transformers import BertConfig, BertModel

TOKENS = torch.arange(12).reshape(2, 6)
CONFIGS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["pooler"]),
    "dora": peft.LoraConfig(r=2, target_modules=["query"], use_dora=True),
    "ia3": peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[]),
}


def bert() -> BertModel:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return BertModel(config).eval()


@torch.no_grad()
def outputs(model: Any) -> Tensor:
    out: Tensor = model.eval()(TOKENS).pooler_output
    return out


@torch.no_grad()
def adapted(config: peft.PeftConfig, name: str = "default") -> Any:
    """A model with an adapter that changes what it computes."""
    model = peft.get_peft_model(bert(), config, adapter_name=name)
    for each in model.parameters():
        if each.requires_grad:
            each.add_(torch.randn_like(each) * 0.3)
    assert not torch.allclose(outputs(model), outputs(bert()))
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_loads_as_it_was(kind: str, tmp_path: Path) -> None:
    model = adapted(CONFIGS[kind])
    save_adapter(model, tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.flashpack"} <= {
        p.name for p in (tmp_path / "adapter").iterdir()
    }
    model.save_pretrained(tmp_path / "plain")
    for loaded in (
        load_adapter(bert(), tmp_path / "adapter"),
        peft.PeftModel.from_pretrained(bert(), tmp_path / "plain"),
    ):
        assert torch.equal(outputs(loaded), outputs(model))
        assert_same(peft.get_peft_model_state_dict(loaded), peft.get_peft_model_state_dict(model))


def test_names_come_without_the_adapters_and_load_under_any(tmp_path: Path) -> None:
    model = adapted(CONFIGS["lora"], name="mine")
    save_adapter(model, tmp_path, "mine")
    names = flashpack.open(tmp_path / "adapter_model.flashpack").keys()
    assert not any("mine" in name or "default" in name for name in names)
    loaded = load_adapter(bert(), tmp_path, "theirs")
    assert list(loaded.peft_config) == ["theirs"]
    assert torch.equal(outputs(loaded), outputs(model))
    again = load_adapter(loaded, tmp_path, "second", is_trainable=True)
    assert again is loaded
    again.set_adapter("second")
    assert torch.equal(outputs(again), outputs(model))


def test_recipes_with_and_without_the_adapters_name(tmp_path: Path) -> None:
    model = adapted(CONFIGS["lora"])
    flashpack.save_file(peft.get_peft_model_state_dict(model), tmp_path / "without.flashpack")
    flashpack.pack_to_file(model, tmp_path / "with.flashpack")
    assert any(".default." in name for name in flashpack.open(tmp_path / "with.flashpack").keys())  # noqa: SIM118

    without = peft.get_peft_model(bert(), CONFIGS["lora"])
    peft.set_peft_model_state_dict(without, flashpack.load_file(tmp_path / "without.flashpack"))
    whole = peft.get_peft_model(bert(), CONFIGS["lora"])
    flashpack.assign_from_file(whole, tmp_path / "with.flashpack", strict=True)
    only = peft.get_peft_model(bert(), CONFIGS["lora"])
    flashpack.assign_from_file(only, tmp_path / "with.flashpack", include=["*.default.*"])
    for loaded in (without, whole, only):
        assert torch.equal(outputs(loaded), outputs(model))


def test_folders_of_peft_are_converted(tmp_path: Path) -> None:
    model = adapted(CONFIGS["lora"])
    model.save_pretrained(tmp_path / "plain")
    flashpack.commands.convert_to_flashpack(tmp_path / "plain", f"{tmp_path / 'packed'}/")
    assert torch.equal(outputs(load_adapter(bert(), tmp_path / "packed")), outputs(model))


def test_adapters_are_compressed(tmp_path: Path) -> None:
    model = adapted(CONFIGS["lora"])
    save_adapter(model, tmp_path, compress="fast", checksum="blake3")
    footer = read_footer(tmp_path / "adapter_model.flashpack")
    assert (footer["format"], footer["checksums"]["algorithm"]) == ("flashpack_v5", "blake3")
    assert torch.equal(outputs(load_adapter(bert(), tmp_path)), outputs(model))


def test_a_model_without_adapters_is_not_saved_as_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="BertModel has no adapter 'default'"):
        save_adapter(bert(), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_other_processes_than_the_main_one_write_nothing(tmp_path: Path) -> None:
    model = adapted(CONFIGS["lora"])
    model.save_pretrained(tmp_path / "theirs", is_main_process=False)
    save_adapter(model, tmp_path / "ours", is_main_process=False)
    assert not any(file.is_file() for file in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="nobody"):
        save_adapter(model, tmp_path / "ours", "nobody", is_main_process=False)


def test_a_folder_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.flashpack"):
        load_adapter(bert(), tmp_path)
    with pytest.raises(ValueError, match="nobody"):
        save_adapter(adapted(CONFIGS["lora"]), tmp_path, "nobody")


# Beside a model of transformers


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder that transformers loads a model and an adapter from."""
    folder = tmp_path / "model"
    bert().save_pretrained(folder)
    adapted(CONFIGS["lora"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_beside_a_model_is_applied(
    packed: bool, dtype: torch.dtype, beside: Path, tmp_path: Path
) -> None:
    flashpack.commands.convert_to_flashpack(beside, f"{tmp_path / 'packed'}/")
    if packed:
        weights = tmp_path / "packed/adapter_model.safetensors"
        flashpack.commands.convert_to_flashpack(weights, weights.with_suffix(".flashpack"))
        weights.unlink()
    expected = BertModel.from_pretrained(beside, dtype=dtype)
    for loaded in (
        load_model(BertModel, tmp_path / "packed", dtype=dtype),
        AutoModel.from_pretrained_flashpack(tmp_path / "packed", dtype=dtype),
    ):
        assert loaded.active_adapters() == expected.active_adapters() == ["default"]
        assert_same(loaded.state_dict(), expected.state_dict())
        assert torch.equal(outputs(loaded), outputs(expected))
        trained = {name: each.requires_grad for name, each in loaded.named_parameters()}
        assert trained == {name: each.requires_grad for name, each in expected.named_parameters()}


@pytest.mark.parametrize("arguments", [{"adapter_name": "own"}, {"adapter_kwargs": {"revision": "main"}}])
def test_an_adapter_beside_a_model_is_named(arguments: dict[str, Any], beside: Path) -> None:
    flashpack.commands.convert_to_flashpack(beside)
    expected = BertModel.from_pretrained(beside, **arguments)
    for loaded in (
        load_model(BertModel, beside, **arguments),
        AutoModel.from_pretrained_flashpack(beside, **arguments),
    ):
        assert loaded.active_adapters() == expected.active_adapters()
        assert_same(loaded.state_dict(), expected.state_dict())


def test_an_adapter_elsewhere_is_refused(beside: Path) -> None:
    flashpack.commands.convert_to_flashpack(beside)
    with pytest.raises(ValueError, match=r"adapter_kwargs=\{'subfolder': 'other'\}: .*load_adapter"):
        load_model(BertModel, beside, adapter_kwargs={"subfolder": "other"})


def test_an_adapter_beside_a_model_needs_peft(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flashpack.commands.convert_to_flashpack(beside)
    monkeypatch.setattr("flashpack.integrations.transformers.model.is_peft_available", lambda: False)
    with pytest.warns(UserWarning, match="not applied: peft is not installed"):
        loaded = load_model(BertModel, beside)
    assert torch.equal(outputs(loaded), outputs(bert()))
