"""Whole pipelines of diffusers in folders: the same image before and after, whatever the formats inside."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import (
    AutoencoderKL,
    ConfigMixin,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config
from flashpack import ChecksumError
from flashpack.integrations.diffusers import FlashPackDiffusersModelMixin, FlashPackDiffusionPipeline
from helpers import assert_same, flip_byte, listing, place_of, read_footer, run_python
from peft import LoraConfig
from tiny_pipelines import picture, states
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

PARTS = {"vae", "unet", "text_encoder"}


class FlashPackStableDiffusion(StableDiffusionPipeline, FlashPackDiffusionPipeline):
    pass


class FlashPackDDPM(DDPMPipeline, FlashPackDiffusionPipeline):
    pass


class FlashPackMyModel(UNet2DModel, FlashPackDiffusersModelMixin):
    """The documentation's example."""


class SomeOtherModel(nn.Module, ConfigMixin):
    """No ModelMixin: diffusers itself could not save it."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([scale]))


class MyPipeline(DiffusionPipeline):
    pass


class FlashPackMyPipeline(MyPipeline, FlashPackDiffusionPipeline):
    def __init__(self, my_model: FlashPackMyModel, other_model: SomeOtherModel) -> None:  # noqa: ARG002
        super().__init__()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = tiny_pipelines.stable_diffusion(tmp_path_factory.mktemp("tokenizer"))
    return FlashPackStableDiffusion(**made.components, requires_safety_checker=False)


@pytest.fixture(scope="module")
def image(pipeline: Any) -> Any:
    return picture(pipeline)


@pytest.fixture(scope="module")
def _packed(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pipeline.save_pretrained_flashpack(folder)
    return folder


@pytest.fixture
def packed(_packed: Path, tmp_path: Path) -> Path:
    """A copy of the saved Stable Diffusion pipeline that a test may change."""
    return Path(shutil.copytree(_packed, tmp_path / "packed"))


def rewrite_index(folder: Path, **entries: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def as_safetensors(pipeline: Any, folder: Path, component: str, **options: Any) -> None:
    """Put the component in diffusers' own format in the place of its FlashPack files."""
    for path in (folder / component).glob("*.flashpack"):
        path.unlink()
    getattr(pipeline, component).save_pretrained(folder / component, **options)


# Round trips


def test_every_component_with_weights_is_packed(packed: Path) -> None:
    for part in PARTS:
        assert listing(packed / part) == {"config.json", "model.flashpack"}
    assert listing(packed) == {*PARTS, "tokenizer", "scheduler", "model_index.json"}


def test_stable_diffusion_makes_the_same_image(pipeline: Any, image: Any, packed: Path) -> None:
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(str(packed), device="cpu")
    assert type(loaded) is FlashPackStableDiffusion
    assert [type(loaded.text_encoder), type(loaded.tokenizer)] == [CLIPTextModel, type(pipeline.tokenizer)]
    assert not any(getattr(loaded, part).training for part in PARTS)
    assert_same(states(loaded), states(pipeline))
    assert image.std() > 0
    assert np.array_equal(picture(loaded), image)
    assert loaded.config._name_or_path == str(packed)


@pytest.mark.parametrize("make", [tiny_pipelines.ddpm, tiny_pipelines.dit_pipeline])
def test_other_pipelines_make_the_same_image(make: Any, tmp_path: Path) -> None:
    made = make()
    FlashPackDiffusionPipeline.save_pretrained_flashpack(made, tmp_path)
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(tmp_path)
    assert type(loaded) is type(made)
    assert_same(states(loaded), states(made))
    assert np.array_equal(picture(loaded), picture(made))


def test_as_the_readme_says(tmp_path: Path) -> None:
    model, other = FlashPackMyModel.from_config(tiny_pipelines.unet().config), SomeOtherModel(3.0)
    FlashPackMyPipeline(model, other).save_pretrained_flashpack(
        str(tmp_path / "some_directory"), push_to_hub=False
    )
    loaded = FlashPackMyPipeline.from_pretrained_flashpack(str(tmp_path / "some_directory"))
    assert type(loaded) is FlashPackMyPipeline
    assert [type(loaded.my_model), type(loaded.other_model)] == [FlashPackMyModel, SomeOtherModel]
    assert_same(states(loaded), states(FlashPackMyPipeline(model, other)))


def test_the_annotated_class_stands_in_for_its_base(tmp_path: Path) -> None:
    FlashPackMyPipeline(tiny_pipelines.unet(), SomeOtherModel()).save_pretrained_flashpack(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["my_model"] == ["diffusers", "UNet2DModel"]
    loaded = FlashPackMyPipeline.from_pretrained_flashpack(tmp_path)
    assert type(loaded.my_model) is FlashPackMyModel


def test_an_ordinary_load_then_packs(pipeline: Any, image: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "ordinary")
    loaded = FlashPackStableDiffusion.from_pretrained(tmp_path / "ordinary")
    loaded.save_pretrained_flashpack(tmp_path / "packed")
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(tmp_path / "packed")
    assert np.array_equal(picture(loaded), image)


def test_compiled_components_are_saved_as_what_they_wrap(tmp_path: Path) -> None:
    unet = tiny_pipelines.unet().eval()
    FlashPackDDPM(torch.compile(unet), DDPMScheduler()).save_pretrained_flashpack(tmp_path)
    assert_same(FlashPackDDPM.from_pretrained_flashpack(tmp_path).unet.state_dict(), unet.state_dict())


# Mixed formats, variants, dtypes, passed components


@pytest.mark.parametrize("component", sorted(PARTS))
def test_a_component_in_safetensors_loads_as_usual(
    component: str, pipeline: Any, image: Any, packed: Path
) -> None:
    as_safetensors(pipeline, packed, component)
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(packed)
    assert_same(states(loaded), states(pipeline))
    # Kernels may round otherwise where safetensors leave a weight unaligned.
    assert np.allclose(picture(loaded), image, atol=1e-5)


def test_variants_fall_back_to_the_plain_file(pipeline: Any, packed: Path) -> None:
    pipeline.save_pretrained_flashpack(packed, variant="fp16", target_dtype=torch.float16)
    assert listing(packed / "unet") == {"config.json", "model.flashpack", "model.fp16.flashpack"}
    (packed / "vae" / "model.fp16.flashpack").unlink()
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(packed, variant="fp16")
    dtypes = {part: getattr(loaded, part).dtype for part in PARTS}
    assert dtypes == {"unet": torch.float16, "text_encoder": torch.float16, "vae": torch.float32}
    assert FlashPackStableDiffusion.from_pretrained_flashpack(packed).unet.dtype == torch.float32
    with pytest.raises(FileNotFoundError, match="variant 'ema'"):
        FlashPackStableDiffusion.from_pretrained_flashpack(packed, variant="ema")


def test_variants_of_the_other_format_count(pipeline: Any, packed: Path) -> None:
    marked = AutoencoderKL.from_config(pipeline.vae.config)
    marked.save_pretrained(packed / "vae", variant="fp16")
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(packed, variant="fp16")
    assert_same(loaded.vae.state_dict(), marked.state_dict())
    assert_same(loaded.unet.state_dict(), pipeline.unet.state_dict())


def test_a_variant_of_one_format_and_plain_files_of_the_other(pipeline: Any, packed: Path) -> None:
    as_safetensors(pipeline, packed, "vae")
    pipeline.unet.save_config(packed / "unet")
    (packed / "unet" / "model.flashpack").rename(packed / "unet" / "model.fp16.flashpack")
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(packed, variant="fp16")
    assert_same(states(loaded), states(pipeline))


def test_dtypes_by_component(pipeline: Any, packed: Path) -> None:
    dtypes = {"unet": torch.float16, "default": torch.bfloat16}
    as_safetensors(pipeline, packed, "vae")
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(packed, torch_dtype=dtypes)
    assert {part: getattr(loaded, part).dtype for part in PARTS} == {
        "unet": torch.float16,
        "vae": torch.bfloat16,
        "text_encoder": torch.bfloat16,
    }
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(packed, dtype=torch.float16)
    assert {getattr(loaded, part).dtype for part in PARTS} == {torch.float16}


def test_digests_of_all_components_may_be_cryptographic(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained_flashpack(tmp_path / "saved", checksum="blake3")
    pipeline.save_pretrained_flashpack(tmp_path / "saved" / "all.flashpack", checksum="blake3")
    files = sorted((tmp_path / "saved").rglob("*.flashpack"))
    assert len(files) == 1 + len(PARTS)
    assert {read_footer(file)["checksums"]["algorithm"] for file in files} == {"blake3"}


def test_saving_in_dtypes_by_component(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained_flashpack(tmp_path / "saved", target_dtype={"unet": torch.float16})
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(tmp_path / "saved")
    assert (loaded.unet.dtype, loaded.vae.dtype) == (torch.float16, torch.float32)
    with pytest.raises(ValueError, match=r"unknown components: \['unte'\]"):
        pipeline.save_pretrained_flashpack(tmp_path / "other", target_dtype={"unte": torch.float16})
    assert not (tmp_path / "other").exists()


def test_components_that_are_given_are_taken_as_they_are(pipeline: Any, packed: Path) -> None:
    (packed / "vae" / "model.flashpack").write_bytes(b"never read")
    vae = tiny_pipelines.autoencoder()
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(packed, vae=vae, tokenizer=pipeline.tokenizer)
    assert loaded.vae is vae
    assert isinstance(loaded.tokenizer, CLIPTokenizer)
    assert_same(loaded.unet.state_dict(), pipeline.unet.state_dict())


# Names of classes


@pytest.mark.parametrize(
    "entry",
    [
        ["diffusers", "FlashPackUNet2DModel"],
        ["flashpack", "FlashPackUNet2DModel"],
        ["flashpack.integrations.diffusers.patch", "FlashPackUNet2DModel"],
        ["a_module.that_is_gone", "FlashPackUNet2DModel"],
    ],
)
@pytest.mark.parametrize("has_flashpack", [True, False])
def test_names_that_0_4_5_derived_load(entry: list[str], has_flashpack: bool, tmp_path: Path) -> None:
    made = tiny_pipelines.ddpm()
    if has_flashpack:
        FlashPackDiffusionPipeline.save_pretrained_flashpack(made, tmp_path)
    else:
        made.save_pretrained(tmp_path)
    rewrite_index(tmp_path, _class_name="FlashPackDDPMPipeline", unet=entry)
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(tmp_path)
    assert [type(loaded), type(loaded.unet)] == [DDPMPipeline, UNet2DModel]
    assert_same(states(loaded), states(made))
    assert loaded.config._name_or_path == str(tmp_path)


def test_a_name_that_is_annotated_needs_no_module(tmp_path: Path) -> None:
    FlashPackMyPipeline(tiny_pipelines.unet(), SomeOtherModel()).save_pretrained_flashpack(tmp_path)
    rewrite_index(tmp_path, my_model=["gone", "MyModel"], other_model=["gone", "FlashPackSomeOtherModel"])
    loaded = FlashPackMyPipeline.from_pretrained_flashpack(tmp_path)
    assert [type(loaded.my_model), type(loaded.other_model)] == [FlashPackMyModel, SomeOtherModel]


def test_names_that_are_nowhere(tmp_path: Path) -> None:
    FlashPackDDPM(tiny_pipelines.unet(), DDPMScheduler()).save_pretrained_flashpack(tmp_path)
    with pytest.raises(ValueError, match=r"'FlashPackDDPM', which diffusers .* does not have"):
        FlashPackDiffusionPipeline.from_pretrained_flashpack(tmp_path)
    rewrite_index(tmp_path, unet=["gone", "NoSuchModel"])
    with pytest.raises(
        ValueError, match=r"'NoSuchModel' of the component 'unet'.*pass the component as unet="
    ):
        FlashPackDDPM.from_pretrained_flashpack(tmp_path)
    loaded = FlashPackDDPM.from_pretrained_flashpack(tmp_path, unet=tiny_pipelines.unet())
    assert type(loaded.unet) is UNet2DModel


# Errors, and diffusers' own support


def test_a_component_that_could_not_be_loaded_again_is_refused(tmp_path: Path) -> None:
    broken = FlashPackMyPipeline(tiny_pipelines.unet(), SomeOtherModel())
    broken.register_modules(other_model=nn.Linear(2, 2))
    with pytest.raises(TypeError, match="'other_model': Linear cannot be saved"):
        broken.save_pretrained_flashpack(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_adapters_inside_are_not_saved_unnoticed(tmp_path: Path) -> None:
    made = tiny_pipelines.stable_diffusion(tmp_path / "tokenizer")
    made.unet.add_adapter(LoraConfig(target_modules=["to_q"]))
    for place in ("folder", "file.flashpack"):
        with pytest.raises(ValueError, match=r"'unet': UNet2DConditionModel has PEFT adapters inside"):
            FlashPackDiffusionPipeline.save_pretrained_flashpack(made, tmp_path / place)
    assert listing(tmp_path) == {"tokenizer"}
    made.unload_lora_weights()
    FlashPackDiffusionPipeline.save_pretrained_flashpack(made, tmp_path / "folder")
    assert_same(
        states(FlashPackDiffusionPipeline.from_pretrained_flashpack(tmp_path / "folder")), states(made)
    )


def test_folders_that_hold_no_pipeline(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FlashPackStableDiffusion.from_pretrained_flashpack(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        FlashPackStableDiffusion.from_pretrained_flashpack(packed / "unet")
    (packed / "unet" / "model.flashpack").unlink()
    with pytest.raises(OSError, match="unet"):
        FlashPackStableDiffusion.from_pretrained_flashpack(packed)
    (packed / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model_index\.json: not a configuration: it is a JSON list"):
        FlashPackStableDiffusion.from_pretrained_flashpack(packed)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_damaged_component_is_named(component: str, packed: Path) -> None:
    weights = packed / component / "model.flashpack"
    name = read_footer(weights)["index"][0]["name"]
    flip_byte(weights, place_of(weights, name)[0])
    with pytest.raises(ChecksumError, match=str(weights)):
        FlashPackStableDiffusion.from_pretrained_flashpack(packed, verify=True)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("saved_as", ["folder", "one.flashpack"])
def test_arguments_of_diffusers_that_ask_for_nothing(saved_as: str, tmp_path: Path) -> None:
    made = tiny_pipelines.ddpm()
    FlashPackDiffusionPipeline.save_pretrained_flashpack(made, tmp_path / saved_as)
    taken = re.findall(r'kwargs\.pop\(\s*"(\w+)"', inspect.getsource(DiffusionPipeline.from_pretrained))
    assert {"quantization_config", "disable_mmap"} < {*taken}
    arguments = {**dict.fromkeys(taken), "mirror": None, "output_loading_info": False}
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(tmp_path / saved_as, **arguments)
    assert_same(states(loaded), states(made))


def test_quantization_while_loading_is_refused(packed: Path) -> None:
    with pytest.raises(ValueError, match="quantization_config is for from_pretrained"):
        FlashPackStableDiffusion.from_pretrained_flashpack(packed, quantization_config=object())


def test_diffusers_own_support_works(pipeline: Any, image: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path, use_flashpack=True)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, use_flashpack=True)
    for part in PARTS:
        getattr(loaded, part).eval()
    assert "model.flashpack" in listing(tmp_path / "unet")
    assert "model.safetensors" in listing(tmp_path / "text_encoder")
    assert np.allclose(picture(loaded), image, atol=1e-5)
    ours = FlashPackStableDiffusion.from_pretrained_flashpack(tmp_path)
    assert_same(states(ours), states(pipeline))


def test_a_pipeline_imports_only_the_libraries_it_is_for(tmp_path: Path) -> None:
    """What `model_index.json` names is looked up where the program has imported it, and not run."""
    (tmp_path / "trap.py").write_text("class Trap: pass\n")
    printed = run_python(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from flashpack.integrations.diffusers._classes import exact_class\n"
        "assert exact_class('trap', 'Trap') is None and 'trap' not in sys.modules\n"
        "import trap\n"
        "assert exact_class('trap', 'Trap') is trap.Trap\n"
        "print(exact_class('diffusers', 'UNet2DModel').__name__)",
        tmp_path,
    )
    assert printed == "UNet2DModel"
