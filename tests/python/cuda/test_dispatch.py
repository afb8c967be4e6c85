"""A model spread over devices and the file, by accelerate's device maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import engine
import fakecuda
import flashpack
import pytest
import torch
from engine import assert_arrived, loading, saved
from flashpack.integrations.accelerate import load_checkpoint_and_dispatch
from torch import nn

pytestmark = pytest.mark.usefixtures("emulator")


def layers() -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(512, 300 + number) for number in range(4))


def spread(folder: str) -> None:
    source = layers()
    path, want = saved(folder, source), engine.state_of(source)
    with accelerate.init_empty_weights():
        model = layers()
    with loading():
        model = load_checkpoint_and_dispatch(model, path, {"0": 0, "1": "cuda:1", "2": "cpu", "3": "disk"})
    for module, device in ((0, "cuda:0"), (1, "cuda:1")):
        held = {name: want[f"{module}.{name}"] for name in ("weight", "bias")}
        assert_arrived(model[module].state_dict(), held, device)
    for module in (2, 3):
        assert all(parameter.is_meta for parameter in model[module].parameters())
        kept = model[module]._hf_hook.weights_map
        engine.assert_same(
            {name: kept[name] for name in ("weight", "bias")},
            {name: want[f"{module}.{name}"] for name in ("weight", "bias")},
        )


@pytest.mark.parametrize("mode", ["strict", "lazy:1"])
def test_spread_over_devices_and_the_file(mode: str, tmp_path: Path) -> None:
    fakecuda.call(spread, str(tmp_path), mode=mode, devices=2).check()


def tied() -> nn.Sequential:
    """Layers, of which the second and the third have one weight."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)), nn.BatchNorm1d(64)).eval()
    model[2].weight = model[1].weight
    return model


def reloaded(folder: str) -> None:
    source = tied()
    path, want = saved(folder, source), engine.state_of(source)
    model = tied()
    places = {"0": "cpu", "1": 0, "2": 0, "3": 1, "4": 1}
    model = accelerate.dispatch_model(model, places, main_device=0)
    with pytest.raises(ValueError, match="1: accelerate runs it on cuda:0, so it cannot be loaded to cpu"):
        flashpack.assign_from_file(model, path, device="cpu")
    with loading():
        flashpack.assign_from_file(model, path)
    for module, device in (("1", "cuda:0"), ("2", "cuda:0"), ("3", "cuda:1"), ("4", "cuda:1")):
        held = {name: want[f"{module}.{name}"] for name in model[int(module)].state_dict()}
        assert_arrived(model[int(module)].state_dict(), held, device)
    kept = model[0]._hf_hook.weights_map
    assert model[0].weight.is_meta
    assert torch.equal(kept["weight"], want["0.weight"])
    assert kept["weight"].device.type == "cpu"
    assert model[1].weight is model[2].weight


def by_hand(folder: str) -> None:
    source = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    path, want = saved(folder, source), engine.state_of(source)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64).cuda(1), nn.Linear(64, 64).cuda(0))
    seen: list[tuple[int, int]] = []
    with loading():
        flashpack.assign_from_file(model, path, progress=lambda done, whole: seen.append((done, whole)))
    engine.assert_same(model[0].state_dict(), {name: want[f"0.{name}"] for name in ("weight", "bias")})
    assert model[0].weight.device.type == "cpu"
    for module, device in ((1, "cuda:1"), (2, "cuda:0")):
        held = {name: want[f"{module}.{name}"] for name in ("weight", "bias")}
        assert_arrived(model[module].state_dict(), held, device)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    with pytest.raises(ValueError, match="keep_flash_ref_on_model=True: the model lies on several devices"):
        flashpack.assign_from_file(model, path, keep_flash_ref_on_model=True)
    flashpack.assign_from_file(model, path, device="cuda:1")
    assert_arrived(model.state_dict(), want, "cuda:1")


class Renamed(nn.Module):
    """A layer whose records have names of old."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(64, 64)

    def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, *rest: Any) -> None:
        for name in ("weight", "bias"):
            state[f"{prefix}new.{name}"] = state.pop(f"{prefix}{name}")
        super()._load_from_state_dict(state, prefix, *rest)


def in_their_own_way(folder: str) -> None:
    source = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    path, want = saved(folder, source), engine.state_of(source)
    model = nn.Sequential(nn.Linear(64, 64), Renamed().cuda(1))
    flashpack.assign_from_file(model, path)
    assert model[0].weight.device.type == "cpu"
    held = {name: want[f"1.{name}"] for name in ("weight", "bias")}
    assert_arrived(model[1].new.state_dict(), held, "cuda:1")


def test_modules_that_load_in_their_own_way_stay_where_they_are(tmp_path: Path) -> None:
    fakecuda.call(in_their_own_way, str(tmp_path), devices=2).check()


def test_a_dispatched_model_stays_where_it_is(tmp_path: Path) -> None:
    fakecuda.call(reloaded, str(tmp_path), devices=2).check()


def test_a_model_that_is_spread_by_hand_stays_where_it_is(tmp_path: Path) -> None:
    fakecuda.call(by_hand, str(tmp_path), devices=2).check()
