"""Loading into models that are offloaded already: they compute with the new weights, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import accelerate
import flashpack
import pytest
import tiny_pipelines
import torch
from diffusers.hooks.group_offloading import ModuleGroup, apply_group_offloading
from flashpack.integrations.accelerate import disk_offload
from flashpack.integrations.diffusers import FlashPackDiffusionPipeline
from flashpack.integrations.diffusers.pipeline import save_pipeline
from helpers import assert_same
from torch import Tensor, nn

X = torch.randn(3, 4)
CPU = torch.device("cpu")


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()


@pytest.fixture
def new(path: Path) -> nn.Sequential:
    model = make()
    model[1].running_mean.fill_(0.25)
    flashpack.pack_to_file(model, path)
    return model


def on_cpu(model: nn.Module, folder: Path) -> nn.Module:  # noqa: ARG001
    return accelerate.cpu_offload(model, CPU)


def with_buffers(model: nn.Module, folder: Path) -> nn.Module:  # noqa: ARG001
    return accelerate.cpu_offload(model, CPU, offload_buffers=True)


def whole_blocks(model: nn.Module, folder: Path) -> nn.Module:  # noqa: ARG001
    return accelerate.cpu_offload(model, CPU, preload_module_classes=["Sequential"])


def whole_layers(model: nn.Module, folder: Path) -> nn.Module:  # noqa: ARG001
    return accelerate.cpu_offload(model, CPU, preload_module_classes=["Linear"])


def on_disk(model: nn.Module, folder: Path) -> nn.Module:
    return accelerate.disk_offload(model, str(folder / "offload"), CPU)


def partly(model: nn.Module, folder: Path) -> nn.Module:
    places = {"0": "cpu", "1": "cpu", "2": "disk"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder / "offload"))


def in_our_file(model: nn.Module, folder: Path) -> nn.Module:
    flashpack.pack_to_file(model, folder / "old.flashpack")
    return disk_offload(model, folder / "old.flashpack", "cpu")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "offload", [on_cpu, with_buffers, whole_blocks, whole_layers, on_disk, partly, in_our_file]
)
def test_an_offloaded_model_computes_with_what_was_loaded(
    offload: Callable[[nn.Module, Path], nn.Module],
    dtype: torch.dtype,
    new: nn.Sequential,
    path: Path,
    tmp_path: Path,
) -> None:
    model = offload(make().to(dtype), tmp_path)
    model(X.to(dtype))
    flashpack.assign_from_file(model, path, coerce_dtype=True)
    want = new(X)
    if dtype == torch.float32:
        assert torch.equal(model(X), want)
        assert torch.equal(model(X), want)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    for name, parameter in new.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)


@torch.no_grad()
def test_a_submodule_of_an_offloaded_model(new: nn.Sequential, path: Path, tmp_path: Path) -> None:
    model = make()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    offloaded = on_cpu(model, tmp_path)
    flashpack.pack_to_file(new[2], path)
    flashpack.assign_from_file(offloaded[2], path)
    want = make()
    want.load_state_dict(state)
    want[2].load_state_dict(new[2].state_dict())
    assert torch.equal(offloaded(X), want(X))


@pytest.mark.usefixtures("new")
def test_weights_in_an_unknown_mapping_are_refused(path: Path) -> None:
    model = make()
    weights = MappingProxyType(dict(model.state_dict()))
    accelerate.hooks.attach_align_device_hook(model, CPU, offload=True, weights_map=weights)
    before = model(X)
    with pytest.raises(ValueError, match="offloaded to a mappingproxy"):
        flashpack.assign_from_file(model, path)
    assert torch.equal(model(X), before)


@torch.no_grad()
@pytest.mark.usefixtures("new")
def test_groups_that_diffusers_offloads_to_disk_are_refused(path: Path, tmp_path: Path) -> None:
    model = nn.Sequential(*make()[:1], nn.Sequential(*make()[1:]))
    flashpack.pack_to_file(model, path)
    apply_group_offloading(
        model, CPU, CPU, offload_type="leaf_level", offload_to_disk_path=str(tmp_path / "groups")
    )
    before = model(X)
    with pytest.raises(ValueError, match="diffusers has offloaded its weights to files"):
        flashpack.assign_from_file(model, path)
    assert torch.equal(model(X), before)


class Stream:
    """What a group with copies of its own needs of a stream when there is no device."""

    def synchronize(self) -> None:
        pass


@torch.no_grad()
def test_copies_that_diffusers_keeps_are_renewed(new: nn.Sequential, path: Path) -> None:
    model = make()
    apply_group_offloading(model, CPU, CPU, offload_type="leaf_level")
    hook = model[0]._diffusers_hook.hooks["group_offloading"]
    hook.group = ModuleGroup(
        [model[0]], CPU, CPU, model[0], model[0], stream=Stream(), low_cpu_mem_usage=True
    )
    flashpack.assign_from_file(model, path)
    copies: dict[Tensor, Tensor] = hook.group.cpu_param_dict
    assert torch.equal(copies[model[0].weight], new[0].weight)
    assert torch.equal(copies[model[0].bias], new[0].bias)


def test_a_pipeline_of_offloaded_models_is_saved_to_one_file(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.ddpm()
    expected = tiny_pipelines.states(pipeline)
    accelerate.cpu_offload(pipeline.unet, CPU)
    assert next(pipeline.unet.parameters()).is_meta
    save_pipeline(pipeline, tmp_path / "one.flashpack")
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(tmp_path / "one.flashpack")
    assert_same(tiny_pipelines.states(loaded), expected)
