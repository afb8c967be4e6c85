"""Pipelines of diffusers, and models of them, from URLs: small files are copied, but no FlashPack weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_diffusers
import tiny_pipelines
import torch
from diffusers import MultiControlNetModel
from faultstore import Store
from flashpack.integrations.diffusers import AutoFlashPackModel, FlashPackDiffusionPipeline, load_model
from flashpack.integrations.diffusers.pipeline import load_pipeline, save_pipeline
from helpers import assert_same
from tiny_pipelines import states


@pytest.fixture
def pipeline(tmp_path: Path) -> Any:
    return tiny_pipelines.stable_diffusion(tmp_path / "tokenizer")


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process makes temporary files."""
    folder = tmp_path / "copies"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def save(pipeline: Any, s3: Store, place: str, **options: Any) -> str:
    """Save the pipeline at `place` of the bucket; returns its URL."""
    (s3.folder / "bucket").mkdir(exist_ok=True)
    save_pipeline(pipeline, s3.folder / "bucket" / place, **options)
    return f"s3://bucket/{place}"


def test_a_pipeline_is_loaded_and_its_weights_stay_there(
    pipeline: Any, s3: Store, copies: Path, tmp_path: Path
) -> None:
    url = save(pipeline, s3, "whole")
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(f"{url}/", cache_dir=tmp_path / "cache")
    assert type(loaded) is type(pipeline)
    assert_same(states(loaded), states(pipeline))
    assert loaded.tokenizer("a b").input_ids == pipeline.tokenizer("a b").input_ids
    assert not list(copies.rglob("*.flashpack"))
    kept = sum(path.stat().st_blocks for path in (tmp_path / "cache").rglob("*") if path.is_file()) * 512
    assert kept > sum(tensor.nbytes for tensor in states(pipeline).values()) / 2
    again = FlashPackDiffusionPipeline.from_pretrained_flashpack(url, cache_dir=tmp_path / "cache")
    assert_same(states(again), states(pipeline))


def test_each_component_in_the_variant_and_format_it_has(pipeline: Any, s3: Store) -> None:
    url = save(pipeline, s3, "mixed")
    folder = s3.folder / "bucket/mixed"
    save_pipeline(pipeline, folder, variant="fp16", target_dtype=torch.float16)
    (folder / "vae/model.flashpack").unlink()
    (folder / "vae/model.fp16.flashpack").unlink()
    pipeline.vae.float().save_pretrained(folder / "vae")
    (folder / "text_encoder/model.fp16.flashpack").unlink()
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(url, variant="fp16")
    assert (loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype) == (
        torch.float16,
        torch.float32,
        torch.float32,
    )
    assert_same(loaded.unet.state_dict(), pipeline.unet.half().state_dict())
    assert_same(loaded.vae.state_dict(), pipeline.vae.state_dict())
    with pytest.raises(FileNotFoundError, match=f"variant 'bf16'.*{url}"):
        FlashPackDiffusionPipeline.from_pretrained_flashpack(url, variant="bf16")


def test_another_variant_than_was_asked_for_is_not_taken(pipeline: Any, s3: Store) -> None:
    url = save(pipeline, s3, "half")
    unet = s3.folder / "bucket/half/unet"
    (unet / "model.flashpack").rename(unet / "model.bf16.flashpack")
    (s3.folder / "bucket/half/vae/model.flashpack").unlink()
    pipeline.vae.save_pretrained(s3.folder / "bucket/half/vae", variant="fp16")
    with pytest.raises(FileNotFoundError, match=r"No model\.flashpack in the folder; there are model\.bf16"):
        AutoFlashPackModel.from_pretrained_flashpack(url, subfolder="unet")
    pipeline.unet.save_pretrained(unet)
    pipeline.vae.save_pretrained(s3.folder / "bucket/half/vae")
    for variant in ("fp16", None):  # what the first fetches is no reason for the second to fetch nothing
        loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(url, variant=variant)
        assert_same(states(loaded), states(pipeline))


@pytest.mark.parametrize("option", [{"revision": "v2"}, {"token": "secret"}, {"force_download": True}])
def test_options_of_repositories_say_nothing_of_a_url(option: dict[str, Any], s3: Store) -> None:
    with pytest.raises(ValueError, match=f"s3://bucket/any: .*{next(iter(option))}.* are for repositories"):
        FlashPackDiffusionPipeline.from_pretrained_flashpack("s3://bucket/any", **option)
    assert s3.take() == []


def test_a_pipeline_in_one_object(pipeline: Any, s3: Store, copies: Path) -> None:
    url = save(pipeline, s3, "one.flashpack")
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(url, dtype={"unet": torch.float16})
    assert_same(loaded.vae.state_dict(), pipeline.vae.state_dict())
    assert_same(loaded.unet.state_dict(), pipeline.unet.half().state_dict())
    assert not list(copies.rglob("*.flashpack"))


def test_a_component_of_a_pipeline(pipeline: Any, s3: Store) -> None:
    url = save(pipeline, s3, "parts")
    for part in ("unet", "text_encoder"):
        loaded = AutoFlashPackModel.from_pretrained_flashpack(url, subfolder=part)
        assert type(loaded) is type(getattr(pipeline, part))
        assert_same(loaded.state_dict(), getattr(pipeline, part).state_dict())


def test_several_models_in_one_component(s3: Store) -> None:
    name = "StableDiffusionControlNetPipeline"
    pipeline, absent = tiny_diffusers.pipeline(name), tiny_diffusers.absent(name)
    url = save(pipeline, s3, "several")
    loaded = load_pipeline(type(pipeline), url, **absent)
    assert_same(states(loaded), states(pipeline))
    nets = load_model(MultiControlNetModel, url, subfolder="controlnet")
    assert_same(nets.state_dict(), pipeline.controlnet.state_dict())
    with pytest.raises(ValueError, match=r"several/controlnet: name the folder of the first .* subfolder="):
        load_model(MultiControlNetModel, f"{url}/controlnet")


def test_what_is_no_pipeline_is_said_to_be_none(s3: Store) -> None:
    (s3.folder / "bucket/empty").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="s3://bucket/empty"):
        FlashPackDiffusionPipeline.from_pretrained_flashpack("s3://bucket/empty")
