"""Folders of several parts, sentence-transformers' and PEFT's, converted and reverted: nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import flashpack
import pytest
import tiny
import torch
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from helpers import assert_same, listing, noise
from hub_server import connect, serving
from hub_store import Hub
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

ADAPTER = "adapter_model.safetensors"
MODULES = ["", "1_Pooling", "2_Dense", "3_Normalize"]


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A folder as sentence-transformers saves it. The library itself is no dependency of these tests."""
    folder = tiny.save(tiny.bert(), tmp_path / "sentences")
    for name in MODULES[1:3]:
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"of": name}))
    save_file({"linear.weight": noise(torch.float32, (4, 4))}, folder / "2_Dense" / "model.safetensors")
    (folder / "2_Dense" / "deep" / "notes").write_text("kept")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("another format")
    (folder / "source.spm").write_text("sentencepiece")
    (folder / "config_sentence_transformers.json").write_text("{}")
    (folder / "modules.json").write_text(json.dumps([{"path": path} for path in MODULES]))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def there_and_back(source: str | Path, folder: Path) -> dict[str, bytes]:
    packed = convert_to_flashpack(source, f"{folder / 'packed'}/")
    revert_from_flashpack(packed, f"{folder / 'back'}/")
    return contents(folder / "back")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as server:
        connect(server, monkeypatch, tmp_path / "cache")
        yield server


def assert_sentences(back: dict[str, bytes], source: Path) -> None:
    expected = contents(source)
    for left in ("training.log", "onnx/model.onnx"):
        del expected[left]
    assert back.keys() == expected.keys()
    assert {name for name in back if back[name] != expected[name]} <= {"model.safetensors"}
    assert_same(load_file(source / "model.safetensors"), load_file(source.parent / "back/model.safetensors"))


def test_modules_of_sentence_transformers(sentences: Path) -> None:
    assert_sentences(there_and_back(sentences, sentences.parent), sentences)
    assert "model.flashpack" in listing(sentences.parent / "packed")


def test_modules_of_sentence_transformers_in_a_repository(hub: Hub, sentences: Path) -> None:
    hub.add("tiny/sentences", sentences)
    assert_sentences(there_and_back("tiny/sentences", sentences.parent), sentences)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc"])
def test_a_module_outside_of_the_folder(sentences: Path, path: str) -> None:
    (sentences / "modules.json").write_text(json.dumps([{"path": path}]))
    with pytest.raises(ValueError, match="must lie inside"):
        convert_to_flashpack(sentences, f"{sentences.parent / 'packed'}/")
    assert not (sentences.parent / "packed").exists()


@pytest.mark.parametrize("listed", ["{}", "[1]", '[{"name": "0"}]', "null", "no JSON"])
def test_a_file_that_lists_no_modules_is_copied(sentences: Path, listed: str) -> None:
    (sentences / "modules.json").write_text(listed)
    back = there_and_back(sentences, sentences.parent)
    assert back["modules.json"].decode() == listed
    assert "2_Dense/model.safetensors" not in back


def test_additional_chat_templates(tmp_path: Path) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ rag }}")
    back = there_and_back(source, tmp_path)
    assert back["additional_chat_templates/rag.jinja"] == b"{{ rag }}"


def adapters(*names: str) -> PeftModel:
    """A BERT with an adapter of each name, whose weights are not the zeros of fresh ones."""
    model = get_peft_model(tiny.bert(), lora(4), adapter_name=names[0])
    for number, name in enumerate(names[1:]):
        model.add_adapter(name, lora(number + 1))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return model.eval()


def lora(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, target_modules=["query", "value"])


def assert_adapter(folder: Path, model: PeftModel, name: str) -> None:
    """PEFT loads the adapter from the folder, and its model's outputs are those of `model` with it."""
    model.set_adapter(name)
    base = tiny.bert()
    base.load_state_dict(tiny_base(model))
    loaded = PeftModel.from_pretrained(base, folder).eval()
    assert torch.equal(tiny.outputs(loaded), tiny.outputs(model))


def tiny_base(model: PeftModel) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("config", [False, True], ids=["alone", "with the base's configuration"])
def test_adapters(tmp_path: Path, safe: bool, config: bool) -> None:
    model = adapters("default", "other")
    model.save_pretrained(tmp_path / "source", safe_serialization=safe)
    if config:
        model.config.save_pretrained(tmp_path / "source")
    back = there_and_back(tmp_path / "source", tmp_path)
    assert "adapter_model.flashpack" in listing(tmp_path / "packed")
    assert "adapter_model.safetensors" in back
    assert_adapter(tmp_path / "back", model, "default")
    assert_adapter(tmp_path / "back" / "other", model, "other")


def test_an_adapter_in_shards_and_as_a_file(tmp_path: Path) -> None:
    model = adapters("default")
    model.save_pretrained(tmp_path / "source")
    convert_to_flashpack(tmp_path / "source", tmp_path / "shards", max_shard_size="500B")
    assert len(list((tmp_path / "shards").glob("adapter_model-*.flashpack"))) > 1
    assert_same(
        flashpack.load_file(tmp_path / "shards"), load_file(tmp_path / "source/adapter_model.safetensors")
    )
    revert_from_flashpack(tmp_path / "shards", f"{tmp_path / 'first'}/")
    assert_adapter(tmp_path / "first", model, "default")
    convert_to_flashpack(tmp_path / "source")
    revert_from_flashpack(tmp_path / "source" / "adapter_model.flashpack", f"{tmp_path / 'second'}/")
    assert_adapter(tmp_path / "second", model, "default")


def test_an_adapter_in_a_repository(hub: Hub, tmp_path: Path) -> None:
    model = adapters("default", "other")
    model.save_pretrained(tmp_path / "source")
    hub.add("tiny/adapter", tmp_path / "source")
    there_and_back("tiny/adapter", tmp_path)
    assert_adapter(tmp_path / "back", model, "default")
    assert_adapter(tmp_path / "back" / "other", model, "other")


@pytest.mark.parametrize("stem", ["pytorch_lora_weights", "learned_embeds"])
def test_adapters_of_diffusers_keep_their_names(tmp_path: Path, stem: str) -> None:
    (tmp_path / "source").mkdir()
    save_file({"a": noise(torch.float32, (3,))}, tmp_path / "source" / f"{stem}.safetensors")
    assert there_and_back(tmp_path / "source", tmp_path).keys() == {f"{stem}.safetensors"}
    assert listing(tmp_path / "packed") == {f"{stem}.flashpack"}


def seeded() -> BertForMaskedLM:
    """The same model every time."""
    torch.manual_seed(0)
    return tiny.bert()


@pytest.fixture(params=["whole", "shards", "bin"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a model and an adapter for it."""
    folder = tiny.save(seeded(), tmp_path / "source")
    adapters("default").save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    if request.param == "bin":
        torch.save(seeded().state_dict(), folder / "pytorch_model.bin")
    else:
        seeded().save_pretrained(folder, max_shard_size="20KB" if request.param == "shards" else "1GB")
    return folder


def assert_both(folder: Path, model: str, source: Path) -> None:
    assert_bert(folder / model)
    assert (folder / ADAPTER).read_bytes() == (source / ADAPTER).read_bytes()


def assert_bert(path: Path) -> None:
    model = tiny.bert()
    flashpack.assign_from_file(model, path)
    assert torch.equal(tiny.outputs(model), tiny.outputs(seeded()))


def test_an_adapter_beside_its_model(both: Path, tmp_path: Path) -> None:
    there_and_back(both, tmp_path)
    assert_both(tmp_path / "packed", "model.flashpack", both)
    assert_both(tmp_path / "back", "model.safetensors", both)


def test_an_adapter_beside_its_model_in_a_repository(hub: Hub, both: Path, tmp_path: Path) -> None:
    hub.add("tiny/both", both)
    there_and_back("tiny/both", tmp_path)
    assert_both(tmp_path / "back", "model.safetensors", both)


def test_an_adapter_that_no_file_can_take_is_named(both: Path, path: Path) -> None:
    with pytest.warns(UserWarning, match=r"not the adapter beside it: \['adapter_model.safetensors'\]"):
        convert_to_flashpack(both, path)
    assert_bert(path)


def test_an_adapter_that_the_library_puts_into_the_model_is_refused(both: Path, tmp_path: Path) -> None:
    config = json.loads((both / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(both)}
    (both / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="puts the adapter of the folder into the model"):
        convert_to_flashpack(both, tmp_path / "packed", use_transformers=True)
    assert not (tmp_path / "packed").exists()
