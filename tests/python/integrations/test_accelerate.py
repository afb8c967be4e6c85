"""Weights that stay in the file, with accelerate's hooks around the layers."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import accelerate
import flashpack
import pytest
import torch
from flashpack.integrations.accelerate import (
    disk_offload,
    load_checkpoint_and_dispatch,
    load_checkpoint_in_model,
)
from helpers import MIB, assert_same, flip_byte
from safetensors.torch import save_file as save_safetensors
from torch import Tensor, nn

WIDTH = 1024


class Tower(nn.Module):
    """Layers of 4 MiB, the last tied to the first, and a buffer that no file holds."""

    def __init__(self, depth: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head.weight = self.layers[0].weight
        self.register_buffer("scale", torch.full((), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return self.head(self.norm(x)) * self.scale


@pytest.fixture
def tower(path: Path) -> Tower:
    model = Tower().eval()
    flashpack.pack_to_file(model, path)
    return model


def empty() -> Tower:
    with accelerate.init_empty_weights():
        return Tower().eval()


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


@torch.no_grad()
def test_layers_wait_in_the_file(tower: Tower, path: Path) -> None:
    x = torch.randn(4, WIDTH)
    want = tower(x)
    disk_offload(empty(), path, "cpu")(x)  # what the hooks import stays
    before = anonymous_bytes()
    model = disk_offload(empty(), path, "cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
    for _ in range(2):
        assert torch.equal(model(x), want)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert anonymous_bytes() - before < 8 * MIB  # of 32


@torch.no_grad()
def test_a_live_model_goes_back_to_the_file(tower: Tower, path: Path) -> None:
    x = torch.randn(4, WIDTH)
    want = tower(x)
    model = disk_offload(Tower().eval(), path, "cpu", offload_buffers=True)
    assert torch.equal(model(x), want)


@torch.no_grad()
@pytest.mark.parametrize(
    "device_map", [{"": "cpu"}, {"": "disk"}, {"layers": "disk", "norm": "cpu", "head": "cpu"}]
)
def test_a_map_of_hosts(tower: Tower, path: Path, device_map: dict[str, str]) -> None:
    x = torch.randn(4, WIDTH)
    model = load_checkpoint_and_dispatch(empty(), path, device_map)
    assert model.head.weight is model.layers[0].weight
    assert torch.equal(model(x), tower(x))


def test_an_inferred_map(tower: Tower, path: Path) -> None:
    model = load_checkpoint_and_dispatch(empty(), path, "auto", max_memory={"cpu": 1 << 30})
    assert_same(model.state_dict(), tower.state_dict())


def test_accelerates_own_device_map_of_one_device(tower: Tower, path: Path) -> None:
    model = empty()
    flashpack.assign_from_file(model, path, device="cpu")
    model = accelerate.dispatch_model(model, {"": "cpu"})
    assert_same(model.state_dict(), tower.state_dict())


DISPATCH = (load_checkpoint_and_dispatch, accelerate.load_checkpoint_and_dispatch)
IN_MODEL = (load_checkpoint_in_model, accelerate.load_checkpoint_in_model)
SPREAD = {"0": "cpu", "1": "disk"}


@pytest.mark.parametrize(
    ("functions", "device_map"),
    [
        (DISPATCH, None),
        (DISPATCH, {"": "cpu"}),
        (DISPATCH, SPREAD),
        (IN_MODEL, None),
        (IN_MODEL, {"": "cpu"}),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {"offload_buffers": True},
        {"offload_state_dict": True},
        {"dtype": None, "strict": True},
        {"broadcast_from_rank0": False, "full_state_dict": True},
    ],
    ids=" ".join,
)
def test_arguments_of_accelerates_functions(
    options: dict[str, Any], functions: Any, device_map: Any, path: Path, tmp_path: Path
) -> None:
    source, safetensors = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), tmp_path / "model.safetensors"
    flashpack.pack_to_file(source, path)
    save_safetensors(source.state_dict(), safetensors, {"format": "pt"})
    for load, file in zip(functions, (path, safetensors), strict=True):
        with nullcontext() if device_map is None else accelerate.init_empty_weights():
            model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        result = load(model, str(file), device_map, offload_folder=str(tmp_path / "away"), **options)
        assert (result is model) is (functions is DISPATCH)
        assert torch.equal(model(torch.ones(2, 3)), source(torch.ones(2, 3)))


class Scaled(nn.Linear):
    """A layer that halves its records."""

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        state[f"{prefix}weight"] = state[f"{prefix}weight"] / 2
        super()._load_from_state_dict(state, prefix, *rest)


def test_modules_that_load_in_their_own_way_do_so(path: Path) -> None:
    source = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    flashpack.pack_to_file(source, path)
    model = nn.Sequential(nn.Linear(3, 3), Scaled(3, 3))
    loaded = load_checkpoint_and_dispatch(model, path, {"": "cpu:0"})
    assert torch.equal(loaded[0].weight, source[0].weight)
    assert torch.equal(loaded[1].weight, source[1].weight / 2)


def test_what_does_not_fit_is_refused(tower: Tower, path: Path) -> None:
    model = empty()
    model.register_parameter("more", nn.Parameter(torch.empty(3, device="meta")))
    with pytest.raises(ValueError, match=r"Missing 1 parameters: \['more'\]"):
        disk_offload(model, path, "cpu")
    with pytest.raises(TypeError, match="unexpected keyword arguments: offload_folder"):
        disk_offload(empty(), path, "cpu", offload_folder="x")
    with pytest.raises(ValueError, match=r"device_map"):
        load_checkpoint_and_dispatch(empty(), path, {"layers": "cpu"})
    assert_same(tower.state_dict(), flashpack.load_file(path) | {"head.weight": tower.head.weight})


def test_what_waits_in_the_file_is_verified_if_asked_for(path: Path) -> None:
    flashpack.pack_to_file(nn.Linear(64, 64), path)
    flip_byte(path, 100)
    load_checkpoint_and_dispatch(nn.Linear(64, 64), path, {"": "disk"})
    with pytest.raises(flashpack.ChecksumError):
        load_checkpoint_and_dispatch(nn.Linear(64, 64), path, {"": "disk"}, verify=True)


@torch.no_grad()
@pytest.mark.parametrize("device_map", [None, {"layers": "cpu", "": "disk"}], ids=["no map", "map"])
def test_a_checkpoint_is_loaded_without_hooks(
    device_map: Any, tower: Tower, path: Path, tmp_path: Path
) -> None:
    accelerate.Accelerator().save_model(tower, tmp_path / "theirs")
    ours, theirs = empty(), empty()
    load_checkpoint_in_model(ours, path, device_map)
    accelerate.load_checkpoint_in_model(theirs, tmp_path / "theirs")
    x = torch.randn(4, WIDTH)
    assert torch.equal(ours(x), tower(x))
    assert_same(ours.state_dict(), tower.state_dict())
    assert not hasattr(ours, "_hf_hook")
    names = [name for name, each in theirs.state_dict().items() if not each.is_meta]
    assert_same(
        {name: ours.state_dict()[name] for name in names}, {name: theirs.state_dict()[name] for name in names}
    )
