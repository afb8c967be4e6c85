"""Models of diffusers in folders: what is saved comes back, with diffusers' own options and errors."""

from __future__ import annotations

import inspect
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusers
import tiny_pipelines
import torch
from diffusers import (
    AutoencoderKL,
    ConfigMixin,
    DiTTransformer2DModel,
    ModelMixin,
    SD3Transformer2DModel,
    Transformer2DModel,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config
from flashpack import ChecksumError, FlashPackError, load_file, save_file
from flashpack.integrations.diffusers import (
    FlashPackDiffusersModelMixin,
    load_model,
    save_model,
)
from helpers import assert_same, flip_byte, listing, place_of, read_footer
from packed_unet import FlashPackUNet, save_unet
from safetensors.torch import save_file as save_safetensors
from torch import nn


class FlashPackFirst(FlashPackDiffusersModelMixin, UNet2DModel):
    """The other way around."""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_unet(tmp_path / "saved")


# Round trips


@pytest.mark.parametrize("name", tiny_pipelines.MODELS)
def test_every_architecture_comes_back(name: str, tmp_path: Path) -> None:
    model = tiny_pipelines.MODELS[name]().eval()
    save_model(model, tmp_path / "folder")
    assert listing(tmp_path / "folder") == {"config.json", "model.flashpack"}
    loaded = load_model(type(model), tmp_path / "folder")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert_same(loaded.state_dict(), model.state_dict())
    assert torch.equal(tiny_pipelines.run_model(loaded), tiny_pipelines.run_model(model))


@pytest.mark.parametrize("cls", [FlashPackUNet, FlashPackFirst])
def test_the_mixin_comes_second_or_first(cls: Any, tmp_path: Path) -> None:
    model = cls.from_config(tiny_pipelines.unet().config).eval()
    model.save_pretrained_flashpack(str(tmp_path / "new" / "folder"), push_to_hub=False)
    loaded = model.from_pretrained_flashpack(
        pretrained_model_name_or_path=str(tmp_path / "new" / "folder"), device="cpu"
    )
    assert type(loaded) is cls
    assert_same(loaded.state_dict(), model.state_dict())
    assert torch.equal(tiny_pipelines.run_model(loaded), tiny_pipelines.run_model(model))
    assert loaded.config._name_or_path == str(tmp_path / "new" / "folder")


def test_weights_of_diffusers_itself_can_be_packed(tmp_path: Path) -> None:
    model = tiny_pipelines.unet()
    model.save_pretrained(tmp_path / "safetensors")
    FlashPackUNet.from_pretrained(tmp_path / "safetensors").save_pretrained_flashpack(tmp_path / "packed")
    assert_same(load_file(tmp_path / "packed" / "model.flashpack"), model.state_dict())


def test_a_loaded_model_saves_and_trains_as_any_other(saved: Path, tmp_path: Path) -> None:
    loaded = FlashPackUNet.from_pretrained_flashpack(saved)
    loaded.save_pretrained(tmp_path / "safetensors")
    assert_same(UNet2DModel.from_pretrained(tmp_path / "safetensors").state_dict(), loaded.state_dict())
    before = (saved / "model.flashpack").read_bytes()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    loaded.train()(torch.ones(1, 3, 16, 16), torch.tensor([1])).sample.sum().backward()
    optimizer.step()
    assert not torch.equal(loaded.conv_in.weight, load_file(saved / "model.flashpack")["conv_in.weight"])
    assert (saved / "model.flashpack").read_bytes() == before


def test_from_flashpack_builds_from_a_config(saved: Path) -> None:
    config = FlashPackUNet.load_config(saved)
    loaded = FlashPackUNet.from_flashpack(saved / "model.flashpack", config, silent=True)
    assert_same(loaded.state_dict(), load_file(saved / "model.flashpack"))


def test_any_module_with_a_config_will_do(tmp_path: Path) -> None:
    class Plain(nn.Module, ConfigMixin):
        config_name = "config.json"

        @register_to_config
        def __init__(self, size: int = 2) -> None:
            super().__init__()
            self.fc = nn.Linear(size, size)

    model = Plain(3)
    save_model(model, tmp_path)
    assert_same(load_model(Plain, tmp_path).state_dict(), model.state_dict())


def test_a_legacy_class_gives_the_class_that_replaced_it(tmp_path: Path) -> None:
    model = tiny_pipelines.dit().eval()
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(Transformer2DModel, tmp_path)
    assert isinstance(loaded, DiTTransformer2DModel)
    assert torch.equal(tiny_pipelines.run_model(loaded), tiny_pipelines.run_model(model))


def test_names_of_old_autoencoders_are_mended(tmp_path: Path) -> None:
    model = tiny_pipelines.autoencoder().eval()
    save_model(model, tmp_path)
    olds = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(tmp_path / "model.flashpack").items():
        for new, old in olds.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = tensor.clone()
    assert renamed.keys() != model.state_dict().keys()
    save_file(renamed, tmp_path / "model.flashpack")
    loaded, info = load_model(AutoencoderKL, tmp_path, output_loading_info=True)
    assert_same(loaded.state_dict(), model.state_dict())
    assert info["missing_keys"] == info["unexpected_keys"] == []
    loaded = load_model(AutoencoderKL, tmp_path)
    assert torch.equal(tiny_pipelines.run_model(loaded), tiny_pipelines.run_model(model))


# Options


def test_variants_and_subfolders(tmp_path: Path) -> None:
    model = FlashPackUNet.from_config(tiny_pipelines.unet().config)
    model.save_pretrained_flashpack(tmp_path / "unet")
    model.save_pretrained_flashpack(tmp_path / "unet", variant="fp16", target_dtype=torch.float16)
    assert listing(tmp_path / "unet") == {"config.json", "model.flashpack", "model.fp16.flashpack"}
    for subfolder in ("unet/", Path("unet")):
        plain = FlashPackUNet.from_pretrained_flashpack(tmp_path, subfolder=subfolder)
    half = FlashPackUNet.from_pretrained_flashpack(tmp_path, subfolder="unet", variant="fp16")
    assert (plain.dtype, half.dtype) == (torch.float32, torch.float16)
    with pytest.raises(FileNotFoundError, match=r"ema.*model\.flashpack, model\.fp16\.flashpack"):
        FlashPackUNet.from_pretrained_flashpack(tmp_path, subfolder="unet", variant="ema")


def test_options_of_a_save_reach_the_file(tmp_path: Path) -> None:
    model = FlashPackUNet.from_config(tiny_pipelines.unet().config)
    options = {"align_bytes": 0, "num_workers": 1, "target_dtype": torch.bfloat16, "checksum": "blake3"}
    model.save_pretrained_flashpack(tmp_path, **options)
    footer = read_footer(tmp_path / "model.flashpack")
    assert footer["align_bytes"] == 0
    assert footer["checksums"]["algorithm"] == "blake3"
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.flashpack").values()} == {torch.bfloat16}


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    model = FlashPackUNet.from_config(tiny_pipelines.unet().config)
    model.save_pretrained_flashpack(tmp_path / "folder", is_main_process=False)
    assert not (tmp_path / "folder").exists()


class KeepsNorms(UNet2DModel, FlashPackDiffusersModelMixin):
    _keep_in_fp32_modules = ["conv_norm_out", "time_embedding"]  # noqa: RUF012 (as diffusers' classes have it)


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_a_dtype_means_what_it_means_to_diffusers(option: str, tmp_path: Path) -> None:
    model = KeepsNorms.from_config(tiny_pipelines.unet().config)
    model.save_pretrained_flashpack(tmp_path, target_dtype=torch.bfloat16)
    model.bfloat16().save_pretrained(tmp_path)
    loaded = KeepsNorms.from_pretrained_flashpack(tmp_path, **{option: torch.float16})
    expected = KeepsNorms.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert_same(loaded.state_dict(), expected.state_dict())
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float16, torch.float32}
    assert torch.get_default_dtype() == torch.float32


def test_without_a_dtype_the_files_are_kept(tmp_path: Path) -> None:
    FlashPackUNet.from_config(tiny_pipelines.unet().config).bfloat16().save_pretrained_flashpack(tmp_path)
    for arguments in ({}, {"dtype": None}, {"torch_dtype": "auto"}):
        assert FlashPackUNet.from_pretrained_flashpack(tmp_path, **arguments).dtype == torch.bfloat16


@pytest.mark.parametrize("saved_as", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_persistent_buffers_have_the_dtype_that_diffusers_gives_them(
    saved_as: torch.dtype, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    model = tiny_pipelines.sd3_transformer().to(saved_as)
    assert "pos_embed.pos_embed" in model.state_dict()
    save_model(model, tmp_path)
    model.save_pretrained(tmp_path)
    loaded = load_model(SD3Transformer2DModel, tmp_path, dtype=dtype)
    expected = SD3Transformer2DModel.from_pretrained(tmp_path, torch_dtype=dtype or saved_as)
    assert_same(loaded.state_dict(), expected.state_dict())


class Rotary(ModelMixin, ConfigMixin):
    """Has a buffer that is not persistent."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.fc = nn.Linear(size, size)
        frequencies = 1.0 / 10000 ** (torch.arange(0, 1, 1 / size))
        self.register_buffer("table", torch.outer(torch.arange(100.0), frequencies), persistent=False)


def test_buffers_of_no_file_are_computed_as_diffusers_computes_them(tmp_path: Path) -> None:
    model = Rotary().to(torch.bfloat16)
    save_model(model, tmp_path)
    model.save_pretrained(tmp_path)
    for dtype in (None, torch.float32, torch.bfloat16):
        loaded = load_model(Rotary, tmp_path, dtype=dtype)
        expected = Rotary.from_pretrained(tmp_path, torch_dtype=dtype or torch.bfloat16)
        assert_same(dict(loaded.named_buffers()), dict(expected.named_buffers()))


@pytest.mark.parametrize("rows", [100, 200])
@pytest.mark.parametrize("ignored", [None, ["tab.e"]])
def test_buffers_that_are_not_persistent_are_not_loaded(
    ignored: list[str] | None, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rotary, "_keys_to_ignore_on_load_unexpected", ignored)
    model = Rotary().to(torch.bfloat16)
    state = model.state_dict() | {"table": torch.ones(rows, 8, dtype=torch.bfloat16)}
    save_model(model, tmp_path, state_dict=state)
    save_safetensors(state, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    for dtype in (None, torch.float32):
        told = {"torch_dtype": dtype or torch.bfloat16, "output_loading_info": True}
        expected, wanted = Rotary.from_pretrained(tmp_path, **told)
        loaded, info = load_model(Rotary, tmp_path, dtype=dtype, output_loading_info=True)
        assert_same(dict(loaded.named_buffers()), dict(expected.named_buffers()))
        assert info["unexpected_keys"] == wanted["unexpected_keys"] == ([] if ignored else ["table"])
        assert_same(load_model(Rotary, tmp_path, dtype=dtype).state_dict(), model.to(dtype).state_dict())


@pytest.mark.parametrize("strict", [None, True, False])
def test_names_that_the_class_does_not_expect_are_left_out(strict: bool | None, tmp_path: Path) -> None:
    """As of a norm that is in the files of Wan's models."""
    model = tiny_diffusers.build("WanTransformer3DModel:image")
    state = model.state_dict() | {"blocks.0.attn2.norm_added_q.weight": torch.ones(24)}
    save_model(model, tmp_path, state_dict=state)
    model.save_pretrained(tmp_path)
    save_safetensors(state, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    expected, wanted = type(model).from_pretrained(tmp_path, output_loading_info=True)
    loaded, info = load_model(type(model), tmp_path, strict=strict, output_loading_info=True)
    assert_same(loaded.state_dict(), expected.state_dict())
    assert info == wanted
    save_model(model, tmp_path, state_dict=state | {"blocks.0.other": torch.ones(3)})
    with pytest.raises(ValueError, match=r"Could not assign 1 names: \['blocks.0.other'\]"):
        load_model(type(model), tmp_path)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_tensors_of_other_shapes_may_be_ignored(dtype: torch.dtype | None, tmp_path: Path) -> None:
    model = tiny_pipelines.unet()
    model.save_pretrained(tmp_path)
    state = model.state_dict() | {"conv_in.weight": torch.ones(3, 2, 1, 1), "conv_out.bias": torch.ones(7)}
    save_model(model, tmp_path, state_dict=state)
    save_safetensors(state, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"conv_in\.weight.*has shape \[3, 2, 1, 1\]"):
        load_model(UNet2DModel, tmp_path, dtype=dtype)
    how = {"torch_dtype": dtype, "ignore_mismatched_sizes": True, "output_loading_info": True}
    expected, wanted = UNet2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False, **how)
    loaded, info = load_model(UNet2DModel, tmp_path, **how)
    got, theirs = loaded.state_dict(), expected.state_dict()
    for name in ("conv_in.weight", "conv_out.bias"):  # diffusers leaves what was in the memory
        fresh, memory = got.pop(name), theirs.pop(name)
        assert (fresh.dtype, fresh.shape) == (memory.dtype, memory.shape)
        assert 0 < fresh.abs().max() < 1
    assert_same(got, theirs)
    assert sorted(info.pop("mismatched_keys")) == sorted(wanted.pop("mismatched_keys"))
    assert info == wanted
    strict = load_model(UNet2DModel, tmp_path, ignore_mismatched_sizes=True)
    assert_same({"": strict.conv_in.bias}, {"": model.conv_in.bias})


def test_a_dtype_may_be_named(saved: Path) -> None:
    assert FlashPackUNet.from_pretrained_flashpack(saved, dtype="float16").dtype == torch.float16


def test_loads_in_different_dtypes_in_many_threads(tmp_path: Path) -> None:
    save_model(tiny_pipelines.sd3_transformer(), tmp_path)  # has a buffer

    def load(dtype: torch.dtype) -> set[torch.dtype]:
        model = load_model(SD3Transformer2DModel, tmp_path, dtype=dtype)
        return {tensor.dtype for tensor in [*model.parameters(), *model.buffers()]}

    dtypes = [torch.float16, torch.float32, torch.bfloat16, torch.float64] * 6
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(load, dtypes)) == [{dtype} for dtype in dtypes]
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("device_map", ["cpu", torch.device("cpu"), {"": "cpu"}])
def test_a_device_map_of_one_device(device_map: Any, saved: Path) -> None:
    loaded = FlashPackUNet.from_pretrained_flashpack(saved, device_map=device_map)
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device_map": "auto"}, ValueError, "single device.*'auto'"),
        ({"device_map": {"conv_in": "cpu", "": 1}}, ValueError, "single device.*conv_in"),
        ({"device": "nowhere"}, ValueError, "single device.*nowhere"),
        ({"device": "cpu", "device_map": {"": 1}}, ValueError, "different devices"),
        ({"dtype": torch.float16, "torch_dtype": torch.float32}, ValueError, "differ"),
        ({"dtype": "float61"}, ValueError, "torch.dtype.*not 'float61'"),
        ({"in_place": True}, ValueError, "assign_from_file"),
        ({"num_streams": 0}, ValueError, "num_streams"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: dict[str, Any], error: type[Exception], message: str, saved: Path
) -> None:
    with pytest.raises(error, match=message):
        FlashPackUNet.from_pretrained_flashpack(saved, **arguments)


def test_other_arguments_override_the_config(saved: Path) -> None:
    loaded = FlashPackUNet.from_pretrained_flashpack(saved, sample_size=64, low_cpu_mem_usage=True)
    assert loaded.config.sample_size == 64


@pytest.mark.filterwarnings("error::UserWarning")
def test_arguments_of_diffusers_that_mean_nothing_here(saved: Path) -> None:
    source = inspect.getsource(ModelMixin.from_pretrained)
    taken = re.findall(r'kwargs\.pop\(\s*"(\w+)"', source)
    assert {"disable_mmap", "max_memory", "parallel_config"} < {*taken}
    expected = load_model(UNet2DModel, saved).state_dict()
    for name in taken:
        assert_same(load_model(UNet2DModel, saved, **{name: None}).state_dict(), expected)
    given = {"disable_mmap": True, "max_memory": {"cpu": "1GB"}, "offload_folder": "away"}
    assert_same(load_model(UNet2DModel, saved, **given).state_dict(), expected)


def test_class_attributes_are_defaults(saved: Path) -> None:
    class Forgetful(FlashPackUNet):
        flashpack_ignore_prefixes = ["conv_out."]  # noqa: RUF012

    weights = saved / "model.flashpack"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    save_file({**tensors, "conv_out.more": torch.ones(1)}, weights)
    loaded = Forgetful.from_pretrained_flashpack(saved)
    assert not torch.equal(loaded.conv_out.weight, tensors["conv_out.weight"])
    assert torch.equal(loaded.conv_in.weight, tensors["conv_in.weight"])


# What does not fit


def test_names_that_do_not_fit_are_refused_or_reported(saved: Path) -> None:
    weights = saved / "model.flashpack"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    del tensors["conv_in.weight"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"Missing 1 parameters: \['conv_in.weight'\]"):
        FlashPackUNet.from_pretrained_flashpack(saved)
    save_file({**tensors, "extra": torch.ones(1)}, weights)
    with pytest.raises(ValueError, match=r"Could not assign 1 names: \['extra'\]"):
        FlashPackUNet.from_pretrained_flashpack(saved)
    loaded, info = FlashPackUNet.from_pretrained_flashpack(saved, output_loading_info=True)
    assert info == {
        "missing_keys": ["conv_in.weight"],
        "unexpected_keys": ["extra"],
        "mismatched_keys": [],
        "error_msgs": [],
    }
    assert not loaded.conv_in.weight.is_meta
    assert loaded.conv_in.weight.std() > 0
    with pytest.raises(ValueError, match=r"conv_in\.weight"):
        FlashPackUNet.from_pretrained_flashpack(
            saved, output_loading_info=True, strict_params=True, ignore_names=["extra"]
        )


def test_a_damaged_file_is_named(saved: Path) -> None:
    weights = saved / "model.flashpack"
    flip_byte(weights, place_of(weights, "conv_in.weight")[0])
    with pytest.raises(ChecksumError, match=str(weights)):
        FlashPackUNet.from_pretrained_flashpack(saved, verify=True)
    weights.write_bytes(b"junk" * 100)
    with pytest.raises(FlashPackError, match=str(weights)):
        FlashPackUNet.from_pretrained_flashpack(saved)


def test_a_configuration_that_is_none(saved: Path) -> None:
    for text, reason in (("[]", "a JSON list"), ("{", "Expecting")):
        (saved / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json: not a configuration: .*{reason}"):
            FlashPackUNet.from_pretrained_flashpack(saved)
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"No config\.json"):
        FlashPackUNet.from_pretrained_flashpack(saved)


def test_a_folder_that_is_missing_or_no_folder(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FlashPackUNet.from_pretrained_flashpack(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"config\.json"):
        FlashPackUNet.from_pretrained_flashpack(saved / "config.json")
    with pytest.raises(NotADirectoryError, match=r"config\.json"):
        FlashPackUNet.from_pretrained_flashpack(saved).save_pretrained_flashpack(saved / "config.json")
    (saved / "model.flashpack").unlink()
    with pytest.raises(FileNotFoundError, match=f"model.flashpack.*{saved}"):
        FlashPackUNet.from_pretrained_flashpack(saved)
