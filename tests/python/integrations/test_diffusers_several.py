"""Components that hold several models, shards of pipelines, and what save and load make of their keywords."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_diffusers
import tiny_pipelines
import torch
from diffusers import MultiControlNetModel, StableDiffusionControlNetPipeline
from diffusers.models.modeling_utils import ModelMixin
from flashpack import load_file
from flashpack.integrations.diffusers import FlashPackDiffusersModelMixin, load_model, save_model
from flashpack.integrations.diffusers.pipeline import load_pipeline, save_pipeline
from helpers import assert_same, listing


class FlashPackUNet(diffusers.UNet2DModel, FlashPackDiffusersModelMixin):
    """As the documentation says."""


@pytest.fixture
def control_nets() -> MultiControlNetModel:
    """Two control nets in one model, of different weights."""
    pipeline = tiny_diffusers.pipeline("StableDiffusionControlNetPipeline")
    found: MultiControlNetModel = pipeline.controlnet
    return found


@pytest.fixture
def unet() -> Any:
    return FlashPackUNet.from_config(tiny_pipelines.unet().config)


# Several models in one component


@pytest.mark.parametrize("name", [*tiny_diffusers.SEVERAL, "StableDiffusionAdapterPipeline"])
@pytest.mark.parametrize("saved", ["folder", "one.flashpack"])
def test_pipelines_with_several_models_in_one_component(name: str, saved: str, tmp_path: Path) -> None:
    pipeline, absent = tiny_diffusers.pipeline(name), tiny_diffusers.absent(name)
    several = "adapter" if "Adapter" in name else "controlnet"
    save_pipeline(pipeline, tmp_path / saved, target_dtype={several: torch.bfloat16})
    loaded = load_pipeline(type(pipeline), tmp_path / saved, **absent)
    assert type(getattr(loaded, several)) is type(getattr(pipeline, several))
    getattr(pipeline, several).to(torch.bfloat16)
    assert_same(tiny_pipelines.states(loaded), tiny_pipelines.states(pipeline))
    loaded = load_pipeline(type(pipeline), tmp_path / saved, dtype={several: torch.float16}, **absent)
    assert {tensor.dtype for tensor in getattr(loaded, several).parameters()} == {torch.float16}
    assert loaded.vae.dtype == torch.float32


def test_several_models_lie_where_diffusers_expects_them(
    control_nets: MultiControlNetModel, tmp_path: Path
) -> None:
    save_model(control_nets, tmp_path / "nets" / "controlnet")
    assert listing(tmp_path / "nets") == {"controlnet", "controlnet_1"}
    for number, folder in enumerate(["controlnet", "controlnet_1"]):
        held = load_file(tmp_path / "nets" / folder / "model.flashpack")
        assert_same(held, control_nets.nets[number].state_dict())
    loaded = load_model(MultiControlNetModel, tmp_path / "nets", subfolder="controlnet", dtype=torch.float16)
    assert_same(loaded.state_dict(), control_nets.half().state_dict())


def test_folders_of_an_earlier_save_are_not_taken_for_more_models(
    control_nets: MultiControlNetModel, tmp_path: Path
) -> None:
    save_model(control_nets, tmp_path / "controlnet")
    one = MultiControlNetModel([control_nets.nets[1]])
    with pytest.raises(FileExistsError, match="controlnet_1"):
        save_model(one, tmp_path / "controlnet")
    assert_same(load_file(tmp_path / "controlnet" / "model.flashpack"), control_nets.nets[0].state_dict())
    with pytest.raises(ValueError, match="state_dict: MultiControlNetModel holds several"):
        save_model(control_nets, tmp_path / "other", state_dict={})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_model(MultiControlNetModel, tmp_path / "nowhere")


def test_diffusers_loads_the_several_models_that_it_saved(tmp_path: Path) -> None:
    name = "StableDiffusionControlNetPipeline"
    pipeline, absent = tiny_diffusers.pipeline(name), tiny_diffusers.absent(name)
    pipeline.save_pretrained(tmp_path)
    save_model(pipeline.unet, tmp_path / "unet")
    loaded = load_pipeline(StableDiffusionControlNetPipeline, tmp_path, **absent)
    assert_same(tiny_pipelines.states(loaded), tiny_pipelines.states(pipeline))


# Shards


def test_max_shard_size_is_that_of_each_component(tmp_path: Path) -> None:
    pipeline: Any = tiny_pipelines.dit_pipeline()
    save_pipeline(pipeline, tmp_path / "folder", max_shard_size="20KB")
    for component in ("transformer", "vae"):
        folder = tmp_path / "folder" / component
        assert "model.flashpack.index.json" in listing(folder)
        assert not (folder / "model.flashpack").exists()
        for shard in folder.glob("*.flashpack"):
            held = load_file(shard).values()
            assert len(held) == 1 or sum(tensor.nbytes for tensor in held) <= 20_000
    loaded = load_pipeline(type(pipeline), tmp_path / "folder")
    assert_same(tiny_pipelines.states(loaded), tiny_pipelines.states(pipeline))
    with pytest.raises(ValueError, match="single file can be neither pushed nor split"):
        save_pipeline(pipeline, tmp_path / "one.flashpack", max_shard_size="20KB")


# Keywords


def test_the_state_dict_that_is_given_is_saved(unet: Any, tmp_path: Path) -> None:
    given = {name: tensor + 1 for name, tensor in unet.state_dict().items()}
    unet.save_pretrained_flashpack(tmp_path, state_dict=given)
    assert_same(load_file(tmp_path / "model.flashpack"), given)
    with pytest.raises(ValueError, match="state_dict: a pipeline has many"):
        save_pipeline(tiny_pipelines.ddpm(), tmp_path / "pipeline", state_dict=given)
    assert not (tmp_path / "pipeline").exists()


@pytest.fixture
def strictly() -> Iterator[None]:
    """Warnings of ours are errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="flashpack: unknown keyword")
        yield


HARMLESS = {"safe_serialization": True, "save_function": None, "use_flashpack": True, "max_shard_size": "1GB"}


@pytest.mark.usefixtures("strictly")
def test_keywords_of_diffusers_own_methods_pass(unet: Any, tmp_path: Path) -> None:
    unet.save_pretrained_flashpack(tmp_path / "unet", **HARMLESS)
    load_model(
        FlashPackUNet,
        tmp_path / "unet",
        low_cpu_mem_usage=True,
        use_safetensors=True,
        disable_mmap=False,
        ignore_mismatched_sizes=False,
        max_memory=None,
    )
    pipeline = tiny_pipelines.ddpm()
    save_pipeline(pipeline, tmp_path / "pipeline", **{**HARMLESS, "is_main_process": True})
    load_pipeline(type(pipeline), tmp_path / "pipeline", low_cpu_mem_usage=True, use_safetensors=True)


def test_a_save_refuses_keywords_that_nothing_takes(unet: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'varient'.*; did you mean 'variant'\?"):
        unet.save_pretrained_flashpack(tmp_path / "unet", varient="fp16")
    with pytest.raises(TypeError, match="'dtype'"):
        unet.save_pretrained_flashpack(tmp_path / "unet", dtype=torch.float16)
    with pytest.raises(TypeError, match=r"'target_dtyp'.*; did you mean 'target_dtype'\?"):
        save_pipeline(tiny_pipelines.ddpm(), tmp_path / "pipeline", target_dtyp=torch.float16)
    assert not [*tmp_path.iterdir()]


def test_keywords_that_have_no_effect_get_a_warning(unet: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'safe_serialization', 'save_function'"):
        unet.save_pretrained_flashpack(tmp_path / "unet", safe_serialization=False, save_function=torch.save)
    with pytest.warns(UserWarning, match="did you mean 'device' for 'devcie'"):
        loaded = load_model(FlashPackUNet, tmp_path / "unet", devcie="cuda", sample_size=64)
    assert loaded.config.sample_size == 64
    with pytest.warns(UserWarning, match="'parallel_config'"):
        load_model(FlashPackUNet, tmp_path / "unet", parallel_config=object())
    pipeline = tiny_pipelines.ddpm()
    with pytest.warns(UserWarning, match="'safe_serialization'"):
        save_pipeline(pipeline, tmp_path / "pipeline", False)
    with pytest.warns(UserWarning, match="did you mean 'dtype' for 'dtyp'"):
        load_pipeline(type(pipeline), tmp_path / "pipeline", dtyp=torch.float16)


def test_a_mapping_of_dtypes_means_what_it_means_to_diffusers(tmp_path: Path) -> None:
    pipeline: Any = tiny_pipelines.dit_pipeline()
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(tmp_path)
    save_pipeline(pipeline, tmp_path)
    for dtypes in ({"vae": torch.float16}, {"vae": torch.float16, "default": torch.bfloat16}):
        loaded = load_pipeline(type(pipeline), tmp_path, dtype=dtypes)
        expected = type(pipeline).from_pretrained(tmp_path, torch_dtype=dtypes)
        assert_same(tiny_pipelines.states(loaded), tiny_pipelines.states(expected))


def test_what_holds_several_models_is_known_by_its_initialiser() -> None:
    from flashpack.integrations.diffusers._classes import holds_several

    held = {name for name in dir(diffusers) if _is_model(name) and holds_several(getattr(diffusers, name))}
    assert held == {name for name in dir(diffusers) if _is_model(name) and "Multi" in name}


def _is_model(name: str) -> bool:
    found = getattr(diffusers, name)
    return isinstance(found, type) and issubclass(found, ModelMixin)
