"""A checkpoint on its way into a serving engine's parameters: the bytes, and the device memory it takes."""

from __future__ import annotations

from pathlib import Path

import fakecuda
import flashpack
import pytest
import torch
from engine import assert_arrived, loading
from flashpack.integrations import _serving
from flashpack.integrations._serving import ServingOptions, checkpoint_tensors
from helpers import MIB, noise

pytestmark = pytest.mark.usefixtures("emulator")


def served(folder: str) -> None:
    want = {f"layers.{number}": noise(torch.bfloat16, (MIB // 2,), number) for number in range(24)}
    flashpack.pack_to_file(want, Path(folder, "model.flashpack"), max_shard_size=10 * MIB)
    path = Path(folder, "model.flashpack.index.json")
    _serving.WINDOW_BYTES = 4 * MIB
    parameters = {name: torch.empty_like(tensor, device="cuda") for name, tensor in want.items()}
    torch.cuda.reset_peak_memory_stats()
    own = torch.cuda.memory_allocated()
    assert not ServingOptions().maps(torch.device("cuda"))
    with loading():
        for name, tensor in checkpoint_tensors(path, torch.device("cuda"), ServingOptions()):
            assert tensor.is_cuda
            parameters[name].copy_(tensor)
        del tensor
        torch.cuda.synchronize()
    assert_arrived(parameters, want, "cuda")
    assert torch.cuda.memory_allocated() == own
    assert torch.cuda.max_memory_allocated() - own <= 2 * 4 * MIB


@pytest.mark.parametrize("mode", fakecuda.MODES)
def test_served(mode: str, tmp_path: Path) -> None:
    counters = fakecuda.call(served, str(tmp_path), mode=mode, devices=1).check().counters
    assert not counters["races"] + counters["frees_in_flight"]
