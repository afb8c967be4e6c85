"""From a device to a file: bytes stream out through pinned buffers, in the order of the caller's stream."""

from __future__ import annotations

from pathlib import Path

import engine
import fakecuda
import flashpack
import pytest
import torch
from engine import assert_arrived, loading, saved, untouched
from helpers import MIB, assert_same, noise
from torch import Tensor

pytestmark = pytest.mark.usefixtures("emulator")


def on(device: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the device, ties kept."""
    copies: dict[int, Tensor] = {}
    return {name: copies.setdefault(id(it), it.to(device)) for name, it in tensors.items()}


def saves(folder: str, device: str) -> None:
    want = {**engine.kinds(), "larger": noise(torch.uint8, (11 * MIB + 5,), 7)}
    there = on(device, want)
    torch.cuda.synchronize(device)
    with loading() as counters:
        path = saved(folder, there)
    assert_same(flashpack.load_file(path, verify=True), want)
    assert counters["d2h_bytes"] >= sum(it.nbytes for it in want.values() if it.numel()) - want["tied"].nbytes
    assert counters["pinned_bytes_peak"] <= 8 * MIB
    tied = flashpack.load_file(path)
    assert tied["tied"].data_ptr() == tied["int32.5x7"].data_ptr()
    after_queued_work(folder, device)
    faults(folder, device)


def after_queued_work(folder: str, device: str) -> None:
    """What the caller's stream has yet to write is what is saved."""
    old, new = (engine.pinned(noise(torch.uint8, (3 * MIB,), seed)) for seed in (1, 2))
    with torch.cuda.stream(torch.cuda.Stream(device)):
        there = torch.empty(3 * MIB, dtype=torch.uint8, device=device)
        there.copy_(old, non_blocking=True)
        torch.cuda.current_stream(device).synchronize()
        with fakecuda.knobs(latency_us=3000):
            there.copy_(new, non_blocking=True)
            path = saved(folder, {"it": there})
    assert torch.equal(flashpack.load_file(path)["it"], new)


def faults(folder: str, device: str) -> None:
    tensors = {"a": noise(torch.uint8, (9 * MIB,), 3)}
    path, there = saved(folder, tensors), on(device, tensors)
    model = torch.nn.ParameterDict({"a": torch.nn.Parameter(there["a"], requires_grad=False)})
    rules = ["cuMemcpyDtoHAsync:1:invalid", "cuMemcpyDtoHAsync:3:invalid", "cuStreamCreate:1:oom"]
    for rule in [*rules, "cuEventRecord:2:invalid", "cuEventRecord:4:invalid"]:
        flashpack.release_pinned_pool()
        with (
            untouched(model),
            fakecuda.faults(rule),
            pytest.raises((RuntimeError, MemoryError), match="CUDA"),
        ):
            flashpack.save_file({"a": model["a"]}, path)
        assert_arrived(flashpack.load_file(path, device), tensors, device)  # the old file
    assert [
        it.name for it in Path(folder).iterdir() if "tmp" in it.suffix or ".flashpack-tmp" in it.name
    ] == []
    engine.assert_no_conflicts()


@pytest.mark.parametrize(
    ("mode", "device"), [*((mode, "cuda") for mode in fakecuda.MODES), ("strict", "cuda:1")]
)
def test_saves(mode: str, device: str, tmp_path: Path) -> None:
    devices = 2 if device == "cuda:1" else 1
    fakecuda.call(saves, str(tmp_path), device, mode=mode, devices=devices).check()
