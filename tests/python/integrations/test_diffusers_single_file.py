"""A pipeline in one file: tensors and all other files, which never leave the folder they are restored to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import ConfigMixin, DDPMPipeline, DDPMScheduler, ModelMixin, StableDiffusionPipeline
from diffusers.configuration_utils import register_to_config
from flashpack import ChecksumError, FlashPackError, get_flashpack_file_metadata, load_file, save_file
from flashpack.integrations.diffusers import FlashPackDiffusionPipeline
from flashpack.integrations.diffusers._single_file import embed_files, restore_files
from helpers import assert_same, flip_byte, listing, place_of
from parity import differences
from tiny_pipelines import picture, states
from torch import nn
from transformers import GPTJConfig, GPTJModel, T5Config, T5EncoderModel


class FlashPackStableDiffusion(StableDiffusionPipeline, FlashPackDiffusionPipeline):
    pass


class FlashPackDDPM(DDPMPipeline, FlashPackDiffusionPipeline):
    pass


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = tiny_pipelines.stable_diffusion(tmp_path_factory.mktemp("tokenizer"))
    return FlashPackStableDiffusion(**made.components, requires_safety_checker=False)


@pytest.fixture
def ddpm() -> Any:
    return FlashPackDDPM(tiny_pipelines.unet().eval(), DDPMScheduler(num_train_timesteps=10))


def test_stable_diffusion_fits_in_one_file(pipeline: Any, path: Path) -> None:
    pipeline.save_pretrained_flashpack(str(path))
    assert listing(path.parent) == {path.name}
    assert_same(load_file(path), states(pipeline))
    names = get_flashpack_file_metadata(path)["metadata"].keys()
    assert {"file:model_index.json", "file:unet/config.json", "file:scheduler/scheduler_config.json"} < names
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(str(path), device="cpu")
    assert type(loaded) is FlashPackStableDiffusion
    assert not any(getattr(loaded, part).training for part in ("unet", "vae", "text_encoder"))
    assert_same(states(loaded), states(pipeline))
    assert loaded.tokenizer("a b c").input_ids == pipeline.tokenizer("a b c").input_ids
    assert np.array_equal(picture(loaded), picture(pipeline))
    assert loaded.config._name_or_path == str(path)


def test_the_base_class_finds_the_pipelines(path: Path) -> None:
    made = tiny_pipelines.ddpm()
    FlashPackDiffusionPipeline.save_pretrained_flashpack(made, path)
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(path)
    assert type(loaded) is DDPMPipeline
    assert np.array_equal(picture(loaded), picture(made))


def test_a_restored_pipeline_can_be_saved_again(pipeline: Any, path: Path, tmp_path: Path) -> None:
    pipeline.save_pretrained_flashpack(path)
    loaded = FlashPackStableDiffusion.from_pretrained_flashpack(path)
    loaded.save_pretrained_flashpack(tmp_path / "folder")
    again = FlashPackStableDiffusion.from_pretrained_flashpack(tmp_path / "folder")
    assert_same(states(again), states(pipeline))
    assert again.tokenizer("a b c").input_ids == pipeline.tokenizer("a b c").input_ids


def test_dtypes_and_given_components(ddpm: Any, path: Path) -> None:
    ddpm.save_pretrained_flashpack(path, target_dtype={"unet": torch.bfloat16})
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    assert FlashPackDDPM.from_pretrained_flashpack(path).unet.dtype == torch.bfloat16
    assert FlashPackDDPM.from_pretrained_flashpack(path, dtype=torch.float16).unet.dtype == torch.float16
    unet = tiny_pipelines.unet()
    assert FlashPackDDPM.from_pretrained_flashpack(path, unet=unet).unet is unet


class FlashPackReader(FlashPackDiffusionPipeline):
    """A pipeline of nothing but a text encoder."""

    def __init__(self, text_encoder: T5EncoderModel) -> None:
        super().__init__()
        self.register_modules(text_encoder=text_encoder)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_a_text_encoder_are_those_of_a_folder(dtype: Any, path: Path, tmp_path: Path) -> None:
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=20)
    made = FlashPackReader(T5EncoderModel(config))
    made.save_pretrained_flashpack(path)
    made.save_pretrained_flashpack(tmp_path / "folder")
    loaded = FlashPackReader.from_pretrained_flashpack(path, dtype=dtype)
    assert_same(
        states(loaded),
        states(FlashPackReader.from_pretrained_flashpack(tmp_path / "folder", dtype=dtype)),
    )
    assert loaded.text_encoder.shared.weight is loaded.text_encoder.encoder.embed_tokens.weight


class FlashPackWriter(FlashPackDiffusionPipeline):
    """A pipeline of nothing but a language model with a table that its constructor computes."""

    def __init__(self, model: GPTJModel) -> None:
        super().__init__()
        self.register_modules(model=model)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float32])
def test_computed_buffers_are_those_of_from_pretrained(dtype: Any, path: Path, tmp_path: Path) -> None:
    config = GPTJConfig(vocab_size=9, n_embd=16, n_layer=1, n_head=2, rotary_dim=8, n_positions=300)
    GPTJModel(config).to(torch.bfloat16).save_pretrained(tmp_path / "own")
    made = FlashPackWriter(GPTJModel.from_pretrained(tmp_path / "own", dtype=torch.bfloat16))
    made.save_pretrained_flashpack(path)
    loaded = FlashPackWriter.from_pretrained_flashpack(path, dtype=dtype)
    expected = GPTJModel.from_pretrained(tmp_path / "own", dtype=dtype or torch.bfloat16)
    assert list(differences(loaded.model, expected)) == []
    assert loaded.model.config.dtype == expected.config.dtype


class Fused(ModelMixin, ConfigMixin):
    """A model that keeps a product of its weights, and renews it when they are loaded."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())
        self.refresh()

    def refresh(self) -> None:
        self.product = self.weight.detach() @ self.weight.detach()


class FlashPackFused(FlashPackDiffusionPipeline):
    def __init__(self, model: Fused) -> None:
        super().__init__()
        self.register_modules(model=model)


def test_modules_that_load_in_their_own_way_do_so(path: Path) -> None:
    made = FlashPackFused(Fused())
    made.save_pretrained_flashpack(path)
    loaded = FlashPackFused.from_pretrained_flashpack(path)
    assert torch.equal(loaded.model.product, made.model.product)


def test_tied_weights_stay_tied(ddpm: Any, path: Path) -> None:
    ddpm.unet.time_embedding.linear_2.bias = ddpm.unet.time_embedding.linear_1.bias
    for dtype in (None, torch.float16):
        ddpm.save_pretrained_flashpack(path, target_dtype=dtype)
        tensors = load_file(path)
        first, second = (tensors[f"unet.time_embedding.linear_{place}.bias"] for place in (1, 2))
        assert first.data_ptr() == second.data_ptr()
        assert first.dtype == (dtype or torch.float32)
        loaded = FlashPackDDPM.from_pretrained_flashpack(path).unet.time_embedding
        assert loaded.linear_1.bias is loaded.linear_2.bias


def test_what_one_file_cannot_be(ddpm: Any, path: Path) -> None:
    for arguments in ({"push_to_hub": True}, {"variant": "fp16"}):
        with pytest.raises(ValueError, match="single file"):
            ddpm.save_pretrained_flashpack(path, **arguments)
    assert not path.exists()
    ddpm.save_pretrained_flashpack(path)
    with pytest.raises(ValueError, match="variants"):
        FlashPackDDPM.from_pretrained_flashpack(path, variant="fp16")


def test_a_folder_may_be_called_like_a_file(ddpm: Any, path: Path) -> None:
    path.mkdir()
    ddpm.save_pretrained_flashpack(path)
    assert listing(path) == {"unet", "scheduler", "model_index.json"}
    assert_same(states(FlashPackDDPM.from_pretrained_flashpack(path)), states(ddpm))


def test_files_that_are_damaged_or_no_pipelines(ddpm: Any, path: Path) -> None:
    ddpm.save_pretrained_flashpack(path)
    flip_byte(path, place_of(path, "unet.conv_in.weight")[0])
    with pytest.raises(ChecksumError, match=str(path)):
        FlashPackDDPM.from_pretrained_flashpack(path, verify=True)
    save_file({"unet.weight": torch.ones(1)}, path)
    with pytest.raises(FlashPackError, match=f"{path}.*no pipeline"):
        FlashPackDDPM.from_pretrained_flashpack(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        FlashPackDDPM.from_pretrained_flashpack(path)


def test_names_that_do_not_fit(ddpm: Any, path: Path) -> None:
    ddpm.save_pretrained_flashpack(path)
    metadata = get_flashpack_file_metadata(path)["metadata"]
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    del tensors["unet.conv_in.weight"]
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"Missing 1 parameters: \['conv_in.weight'\]"):
        FlashPackDDPM.from_pretrained_flashpack(path)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_ignored_tensors_are_fresh_as_out_of_a_folder(dtype: Any, path: Path, tmp_path: Path) -> None:
    name = "encoder.final_layer_norm.weight"
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=20)
    made = FlashPackReader(T5EncoderModel(config))
    torch.nn.init.constant_(made.text_encoder.get_parameter(name), 7)
    made.save_pretrained_flashpack(path)
    made.save_pretrained_flashpack(tmp_path / "folder")
    loaded, expected = (
        FlashPackReader.from_pretrained_flashpack(source, dtype=dtype, ignore_names=[name])
        for source in (path, tmp_path / "folder")
    )
    assert_same(states(loaded), states(expected))
    assert (loaded.text_encoder.get_parameter(name) != 7).all()


# Embedded files


def test_files_are_embedded_as_text_or_base64(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "text.txt").write_bytes("ä\r\n".encode())
    (tmp_path / "model.bin").write_bytes(b"\xff\x00\r\n")
    embedded = embed_files(tmp_path)
    assert embedded == {"file:a/b/text.txt": "ä\r\n", "base64:model.bin": "/wANCg=="}
    restore_files({**embedded, "author": "me", "other:file": "x"}, tmp_path / "new", str(tmp_path))
    assert listing(tmp_path / "new") == {"a", "model.bin"}
    assert (tmp_path / "new" / "a" / "b" / "text.txt").read_bytes() == "ä\r\n".encode()
    assert (tmp_path / "new" / "model.bin").read_bytes() == b"\xff\x00\r\n"


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "a/../../evil", "a/..", "/evil", "//evil", "a//evil", "./evil", ".", "", "a/"),
        *("C:evil", "C:/evil", "C:\\evil", "..\\evil", "a\\evil", "evil\0"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "base64"])
def test_names_that_leave_the_folder_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(FlashPackError, match="not below the pipeline"):
        restore_files({f"{kind}:{name}": ""}, folder, str(tmp_path / "some.flashpack"))
    assert listing(tmp_path) == {"inside"}
    assert listing(folder) == set()


def test_an_embedded_file_that_is_not_base64(tmp_path: Path) -> None:
    with pytest.raises(FlashPackError, match=r"some\.flashpack: the embedded file 'a' is not base64"):
        restore_files({"base64:a": "%"}, tmp_path, str(tmp_path / "some.flashpack"))
