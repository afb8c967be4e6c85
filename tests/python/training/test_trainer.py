"""transformers' Trainer with FlashPack checkpoints: a training that is resumed goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flashpack
import peft
import pytest
import torch
import transformers.trainer
from flashpack.commands import convert_to_flashpack
from flashpack.integrations.transformers import AutoModelForSequenceClassification
from flashpack.integrations.transformers.trainer import FlashPackTrainerMixin, _pack
from helpers import assert_same
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments


class FlashPackTrainer(FlashPackTrainerMixin, Trainer):
    pass


DATA = [{"input_ids": torch.arange(6) + place, "labels": place % 2} for place in range(16)]


def bert(seed: int = 1) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    return BertForSequenceClassification(config)


def adapter(seed: int = 1) -> Any:
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    return peft.get_peft_model(bert(seed), config)


def trainer(kind: type[Trainer], model: nn.Module, folder: Path, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        save_strategy="steps",
        per_device_train_batch_size=4,
        learning_rate=0.01,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return kind(model=model, args=arguments, train_dataset=DATA, eval_dataset=DATA)


@pytest.mark.parametrize(("build", "weights"), [(bert, "model"), (adapter, "adapter_model")])
def test_a_training_is_resumed(build: Any, weights: str, tmp_path: Path) -> None:
    whole, plain = build(), build()
    trainer(FlashPackTrainer, whole, tmp_path / "packed").train()
    trainer(Trainer, plain, tmp_path / "plain").train()
    assert_same(whole.state_dict(), plain.state_dict())
    names = {file.name for file in (tmp_path / "packed/checkpoint-2").iterdir()}
    theirs = {file.name for file in (tmp_path / "plain/checkpoint-2").iterdir()}
    assert names - theirs == {f"{weights}.flashpack"}
    assert theirs - names == {f"{weights}.safetensors"}

    for kind, folder in ((FlashPackTrainer, "packed"), (FlashPackTrainer, "plain")):
        resumed = build(seed=1 if weights == "adapter_model" else 5)
        checkpoint = str(tmp_path / folder / "checkpoint-2")
        trainer(kind, resumed, tmp_path / "resumed").train(resume_from_checkpoint=checkpoint)
        assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", [("default", "two"), ("one", "two")])
def test_adapters_are_resumed_under_their_names(names: tuple[str, str], packed: bool, tmp_path: Path) -> None:
    def two_adapters(seed: int) -> Any:
        config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
        torch.manual_seed(seed)
        model = peft.get_peft_model(bert(), config, adapter_name=names[0])
        model.add_adapter(names[1], config)
        model.set_adapter(names[1])
        return model

    trained = two_adapters(2)
    trainer(FlashPackTrainer, trained, tmp_path).train()
    checkpoint = tmp_path / "checkpoint-4"
    if packed:  # as `flashpack convert` leaves it
        convert_to_flashpack(checkpoint / "two", checkpoint / "two/adapter_model.flashpack")
        (checkpoint / "two/adapter_model.safetensors").unlink()
    resumed = two_adapters(3)
    training = trainer(FlashPackTrainer, resumed, tmp_path)
    training._load_from_checkpoint(str(checkpoint))
    assert_same(resumed.state_dict(), trained.state_dict())
    assert resumed.active_adapters == trained.active_adapters
    trainable = [name for name, each in trained.named_parameters() if each.requires_grad]
    assert [name for name, each in resumed.named_parameters() if each.requires_grad] == trainable


def test_checkpoints_load_as_models(tmp_path: Path) -> None:
    model = bert()
    training = trainer(FlashPackTrainer, model, tmp_path)
    training.train()
    training.save_model(str(tmp_path / "final"))
    loaded = AutoModelForSequenceClassification.from_pretrained_flashpack(tmp_path / "final")
    assert_same(loaded.state_dict(), model.state_dict())
    flashpack.verify_file(tmp_path / "final/model.flashpack")


def test_weights_in_several_files_become_one(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    _pack(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.flashpack"]
    assert_same(flashpack.load_file(tmp_path / "model.flashpack"), model.state_dict())


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    model = bert()
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    training = trainer(FlashPackTrainer, model, tmp_path, **options)
    training.train()
    best = Path(training.state.best_model_checkpoint or "")
    assert_same(model.state_dict(), flashpack.load_file(best / "model.flashpack"))


def test_models_that_are_not_of_transformers(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.layer(input_ids.float())
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    model, resumed = Plain(), Plain()
    trainer(FlashPackTrainer, model, tmp_path).train()
    trainer(FlashPackTrainer, resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed.state_dict(), model.state_dict())


class HubClient:
    """Stands for the Hub's client: knows what it would upload, and where to."""

    def __init__(self) -> None:
        self.uploads: list[tuple[str, dict[str, bytes]]] = []

    def upload_folder(self, folder_path: str, path_in_repo: str = "", **_: Any) -> Job:
        files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir() if file.is_file()}
        self.uploads.append((path_in_repo, files))
        return Job()

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: SimpleNamespace(repo_id="me/it")


class Job:
    """An upload that takes a while, until `finished`."""

    finished = True

    def done(self) -> bool:
        return self.finished


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> HubClient:
    made = HubClient()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: made)
    return made


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints", "end"])
@pytest.mark.parametrize(("build", "weights"), [(bert, "model"), (adapter, "adapter_model")])
def test_pushes_of_checkpoints_upload_the_weights(
    build: Any, weights: str, strategy: str, client: HubClient, tmp_path: Path
) -> None:
    uploads = {}
    for kind in (Trainer, FlashPackTrainer):
        folder = tmp_path / kind.__name__
        options = {"push_to_hub": True, "hub_strategy": strategy}
        trainer(kind, build(), folder, **options).train()
        uploads[kind], client.uploads = client.uploads, []
    packed = {f"{weights}.safetensors": f"{weights}.flashpack"}
    expected = [(place, {packed.get(name, name) for name in files}) for place, files in uploads[Trainer]]
    assert [(place, {*files}) for place, files in uploads[FlashPackTrainer]] == expected
    steps = [2, 2, 4, 4] if strategy in ("checkpoint", "all_checkpoints") else [2, 4]
    for step, (_, files) in zip(steps, uploads[FlashPackTrainer], strict=strategy != "end"):
        name = f"{weights}.flashpack"
        assert files[name] == (tmp_path / f"FlashPackTrainer/checkpoint-{step}" / name).read_bytes()


def test_what_is_being_uploaded_does_not_change(
    client: HubClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Job, "finished", False)
    monkeypatch.setattr(Trainer, "_finish_current_push", lambda _: None)
    trainer(FlashPackTrainer, bert(), tmp_path, push_to_hub=True).train()
    ((_, files),) = client.uploads
    first, last = (tmp_path / f"checkpoint-{step}/model.flashpack" for step in (2, 4))
    assert (tmp_path / "model.flashpack").read_bytes() == files["model.flashpack"] == first.read_bytes()
    assert first.read_bytes() != last.read_bytes()
