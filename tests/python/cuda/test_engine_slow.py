"""Loads to a device from storage that makes readers wait: many requests in flight, little pinned memory."""

from __future__ import annotations

from pathlib import Path

import engine
import fakecuda
import flashpack
import pytest
import slowfs
import torch
from engine import LIMIT_BYTES, assert_arrived, loading
from flashpack._core.ops import pinned_usage
from helpers import MIB, place_of
from torch import Tensor

pytestmark = [
    pytest.mark.usefixtures("emulator"),
    pytest.mark.skipif(bool(slowfs.missing()), reason=slowfs.missing()),
]

COUNT, EACH = 48, 4 * MIB
LATENCY_MS = 400  # so long that a busy machine is no obstacle
ENOUGH = 40  # requests in flight; sixteen readers of 1 MiB each would be far behind


def tensors() -> dict[str, Tensor]:
    return {f"t{number}": torch.full((EACH,), number, dtype=torch.uint8) for number in range(COUNT)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder that is mounted, with a file of `COUNT` tensors."""
    folder = tmp_path / "source"
    folder.mkdir()
    flashpack.save_file(tensors(), folder / "model.flashpack")
    return folder


def load(path: str) -> None:
    want = tensors()
    with loading() as counters:
        got = flashpack.load_file(path, "cuda")
    assert_arrived(got, want, "cuda")
    assert 0 < counters["pinned_bytes_peak"] <= pinned_usage().peak_bytes <= LIMIT_BYTES
    print("loaded")


@pytest.mark.parametrize("mode", ["plain", "strict"])
def test_many_requests_are_in_flight(mode: str, source: Path, tmp_path: Path) -> None:
    with slowfs.mounted(source, tmp_path / "slow", latency_ms=LATENCY_MS) as slow:
        done = fakecuda.call(load, str(slow.folder / "model.flashpack"), mode=mode).check()
        counts = slow.counts()
    assert done.stdout == "loaded\n"
    assert counts.most_in_flight >= ENOUGH
    assert COUNT * EACH <= counts.bytes <= COUNT * EACH * 1.02


def load_what_fails(path: str) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        flashpack.load_file(path, "cuda")
    torch.cuda.synchronize()
    some = ["t1", f"t{COUNT - 1}"]
    assert_arrived(
        flashpack.load_file(path, "cuda", names=some), {name: tensors()[name] for name in some}, "cuda"
    )
    engine.assert_no_conflicts()
    print("told")


def test_a_read_that_fails_is_told_and_the_next_load_works(source: Path, tmp_path: Path) -> None:
    start, size = place_of(source / "model.flashpack", f"t{COUNT // 2}")
    with slowfs.mounted(source, tmp_path / "slow", latency_ms=2, fail_at=start + size // 2) as slow:
        done = fakecuda.call(load_what_fails, str(slow.folder / "model.flashpack"), mode="strict").check()
    assert done.stdout == "told\n"
