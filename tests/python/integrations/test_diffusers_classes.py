"""Classes of diffusers: its own support of FlashPack, automatic ones, and those that are patched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import (
    AutoencoderKL,
    AutoModel,
    DDPMPipeline,
    DiffusionPipeline,
    ModelMixin,
    UNet2DModel,
)
from flashpack import load_file
from flashpack.integrations.diffusers import (
    AutoFlashPackModel,
    patch_diffusers_auto_model,
    save_model,
)
from flashpack.integrations.transformers import save_model as save_transformers_model
from helpers import assert_same, listing
from packed_unet import FlashPackUNet, save_unet


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_unet(tmp_path / "saved")


def test_diffusers_own_support_works(tmp_path: Path) -> None:
    model = tiny_pipelines.unet().eval()
    model.save_pretrained(tmp_path, use_flashpack=True)
    assert "model.flashpack" in listing(tmp_path)
    loaded = UNet2DModel.from_pretrained(
        tmp_path,
        use_flashpack=True,
        device_map={"": "cpu"},
        flashpack_kwargs={"silent": True, "verify": True},
    )
    assert_same(loaded.state_dict(), model.state_dict())
    assert torch.equal(tiny_pipelines.run_model(loaded.eval()), tiny_pipelines.run_model(model))
    ours = FlashPackUNet.from_pretrained_flashpack(tmp_path)
    assert_same(ours.state_dict(), model.state_dict())


def test_diffusers_own_support_reads_what_this_package_saves(saved: Path) -> None:
    loaded = UNet2DModel.from_pretrained(saved, use_flashpack=True, device_map="cpu")
    assert_same(loaded.state_dict(), load_file(saved / "model.flashpack"))


def test_an_automatic_class_reads_the_config(tmp_path: Path) -> None:
    model = tiny_pipelines.autoencoder()
    save_model(model, tmp_path / "vae")
    loaded = AutoFlashPackModel.from_pretrained_flashpack(tmp_path, subfolder="vae", dtype=torch.float16)
    assert (type(loaded), loaded.dtype) == (AutoencoderKL, torch.float16)
    loaded = AutoFlashPackModel.from_pretrained(tmp_path / "vae", use_flashpack=True)
    assert_same(loaded.state_dict(), model.state_dict())
    options = {"flashpack_kwargs": {"dtype": "bf16"}}
    loaded = AutoFlashPackModel.from_pretrained(tmp_path / "vae", use_flashpack=True, **options)
    assert loaded.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "safetensors")
    assert type(AutoFlashPackModel.from_pretrained(tmp_path / "safetensors")) is AutoencoderKL


def test_an_automatic_class_knows_the_names_that_0_4_5_derived(tmp_path: Path) -> None:
    save_model(tiny_pipelines.unet(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "FlashPackUNet2DModel"}))
    assert type(AutoFlashPackModel.from_pretrained_flashpack(tmp_path)) is UNet2DModel
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "NoSuchModel"}))
    with pytest.raises(ValueError, match="NoSuchModel"):
        AutoFlashPackModel.from_pretrained_flashpack(tmp_path)


def test_an_automatic_class_loads_models_of_transformers(tmp_path: Path) -> None:
    encoder = tiny_pipelines.text_encoder()
    save_transformers_model(encoder, tmp_path)
    loaded = AutoFlashPackModel.from_pretrained_flashpack(tmp_path)
    assert type(loaded) is type(encoder)
    assert_same(loaded.state_dict(), encoder.state_dict())


@pytest.fixture
def patched() -> Iterator[list[tuple[type, dict[str, Any]]]]:
    """diffusers' classes, patched twice, with what they had before."""
    before = [(cls, dict(vars(cls))) for cls in (ModelMixin, AutoModel, DiffusionPipeline)]
    patch_diffusers_auto_model()
    patch_diffusers_auto_model()
    yield before
    for cls, old in before:
        for name in [name for name in vars(cls) if name not in old]:
            delattr(cls, name)
    AutoModel.from_pretrained = next(old for cls, old in before if cls is AutoModel)["from_pretrained"]


def test_patching_only_adds(patched: list[tuple[type, dict[str, Any]]]) -> None:
    for cls, old in patched:
        new = {name for name in vars(cls) if name not in old}
        assert new <= {"save_pretrained_flashpack", "from_pretrained_flashpack"}
        changed = {name for name, value in old.items() if vars(cls)[name] is not value}
        assert changed == ({"from_pretrained"} if cls is AutoModel else set())


@pytest.mark.usefixtures("patched")
def test_a_patched_automatic_class_takes_use_flashpack(tmp_path: Path) -> None:
    model, encoder = tiny_pipelines.unet(), tiny_pipelines.text_encoder()
    model.save_pretrained(tmp_path / "ordinary")
    save_model(model, tmp_path / "packed")
    assert_same(AutoModel.from_pretrained(str(tmp_path / "ordinary")).state_dict(), model.state_dict())
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        AutoModel.from_pretrained(str(tmp_path / "packed"), use_flashpack=False)
    for options in ({}, {"flashpack_kwargs": {"strict": True}}):
        loaded = AutoModel.from_pretrained(tmp_path / "packed", use_flashpack=True, **options)
        assert type(loaded) is type(model)
        assert_same(loaded.state_dict(), model.state_dict())
    save_transformers_model(encoder, tmp_path / "encoder")
    loaded = AutoModel.from_pretrained(tmp_path / "encoder", use_flashpack=True)
    assert type(loaded) is type(encoder)
    assert_same(loaded.state_dict(), encoder.state_dict())


@pytest.mark.usefixtures("patched")
def test_patched_classes_save_and_load(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    model: Any = AutoModel.from_pretrained_flashpack(saved)
    assert type(model) is UNet2DModel
    model.save_pretrained_flashpack(tmp_path / "again", target_dtype=torch.float16)
    assert UNet2DModel.from_pretrained_flashpack(tmp_path / "again", device="cpu").dtype == torch.float16
    assert type(FlashPackUNet.from_pretrained_flashpack(saved)) is FlashPackUNet
    pipeline: Any = tiny_pipelines.ddpm()
    pipeline.save_pretrained_flashpack(tmp_path / "pipeline")
    for cls in (DiffusionPipeline, DDPMPipeline):
        loaded = cls.from_pretrained_flashpack(tmp_path / "pipeline")
        assert type(loaded) is DDPMPipeline
        assert_same(loaded.unet.state_dict(), pipeline.unet.state_dict())


def test_pushing_uploads_what_was_saved_with_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    class Api:
        def __init__(self, token: Any) -> None:
            assert token == "secret"

        def create_repo(self, name: str, **arguments: Any) -> Any:
            calls.append({"name": name, **arguments})
            return type("Url", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, **arguments: Any) -> None:
            calls.append({**arguments, "listing": listing(arguments["folder_path"])})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    model = FlashPackUNet.from_config(tiny_pipelines.unet().config)
    model.save_pretrained_flashpack(
        tmp_path / "mine", push_to_hub=True, token="secret", private=True, create_pr=True, commit_message="Hi"
    )
    created, uploaded = calls
    assert created == {"name": "mine", "private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "me/mine"
    assert (uploaded["create_pr"], uploaded["commit_message"]) == (True, "Hi")
    assert (
        set(uploaded["allow_patterns"])
        == uploaded["listing"]
        == {"config.json", "model.flashpack", "README.md"}
    )
    assert "library_name: diffusers" in (tmp_path / "mine" / "README.md").read_text()
