"""Where a load goes elsewhere: to a repository for the files it lacks, to diffusers' quantizers."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import UNet2DModel
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from flashpack import load_file
from flashpack.integrations.diffusers import FlashPackDiffusionPipeline, load_model, save_model
from helpers import assert_same
from tiny_pipelines import states


class Quantizer(DiffusersQuantizer):
    """Changes nothing, and remembers what it was asked to do."""

    requires_calibration = False
    calls: list[str]

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        type(self).calls = ["made"]

    def _process_model_before_weight_loading(self, *_args: Any, **_kwargs: Any) -> None:
        type(self).calls.append("before")

    def _process_model_after_weight_loading(self, *_args: Any, **_kwargs: Any) -> None:
        type(self).calls.append("after")

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


class Unsavable(Quantizer):
    @property
    def is_serializable(self) -> bool:
        return False


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A folder whose config says that the model is quantized."""
    save_model(tiny_pipelines.unet(), tmp_path / "quantized")
    path = tmp_path / "quantized" / "config.json"
    scheme = {"quant_method": "quanto", "weights_dtype": "int8"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": scheme}))
    return path.parent


def test_quantized_models_go_through_their_quantizer(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, "quanto", Quantizer)
    loaded, info = load_model(UNet2DModel, quantized, "cpu", output_loading_info=True, dtype=torch.float32)
    assert Quantizer.calls == ["made", "before", "after"]
    assert info["missing_keys"] == []
    assert isinstance(loaded.hf_quantizer, Quantizer)
    assert_same(loaded.state_dict(), load_file(quantized / "model.flashpack"))
    assert loaded.config._name_or_path == str(quantized)
    save_model(loaded, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["quantization_config"]["quant_method"] == "quanto"
    assert_same(load_file(tmp_path / "again" / "model.flashpack"), load_file(quantized / "model.flashpack"))


def test_a_quantizer_that_cannot_save(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, "quanto", Unsavable)
    loaded = load_model(UNet2DModel, quantized)
    with pytest.raises(ValueError, match="UNet2DModel cannot be saved: its quantizer"):
        save_model(loaded, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes me/pipeline a repository with every format there is; returns what is downloaded of it."""
    repository, snapshot = tmp_path / "repository", tmp_path / "snapshot"
    pipeline = tiny_pipelines.stable_diffusion(tmp_path / "tokenizer")
    FlashPackDiffusionPipeline.save_pretrained_flashpack(pipeline, repository)
    pipeline.save_pretrained(repository)
    pipeline.save_pretrained(repository, variant="fp16")
    (repository / "unet" / "model.flashpack").rename(repository / "unet" / "model.fp16.flashpack")
    (repository / "text_encoder" / "model.flashpack").unlink()
    (repository / "huge.ckpt").write_bytes(b"")
    downloaded: list[str] = []

    def download(
        repo_id: str, allow_patterns: list[str], revision: str | None = None, **_arguments: Any
    ) -> str:
        assert (repo_id, revision) == ("me/pipeline", "main")
        for path in sorted(repository.rglob("*")):
            name = path.relative_to(repository).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, snapshot / name)
                downloaded.append(name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return downloaded


def weights_of(names: list[str]) -> list[str]:
    return sorted(name for name in names if name.endswith((".flashpack", ".safetensors", ".ckpt")))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (
            None,
            [
                "text_encoder/model.safetensors",
                "unet/diffusion_pytorch_model.safetensors",
                "vae/model.flashpack",
            ],
        ),
        (
            "fp16",
            [
                "text_encoder/model.fp16.safetensors",
                "unet/model.fp16.flashpack",
                "vae/diffusion_pytorch_model.fp16.safetensors",
            ],
        ),
    ],
)
def test_each_component_is_downloaded_in_one_format(
    variant: str | None, expected: list[str], fetched: list[str]
) -> None:
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(
        "me/pipeline", variant=variant, revision="main"
    )
    assert weights_of(fetched) == expected
    assert len(states(loaded)) > 100
    assert loaded.config._name_or_path == "me/pipeline"
