"""A model spread over devices and the file, by accelerate's device maps."""

from __future__ import annotations

from pathlib import Path

import accelerate
import engine
import fakecuda
import pytest
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
