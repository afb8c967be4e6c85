"""Loads from storage with a high latency have many requests in flight: counted, never timed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flashpack
import pytest
import safetensors.torch
import slowfs
import torch
from helpers import MIB, assert_same, noise
from page_cache import resident
from torch import Tensor

pytestmark = pytest.mark.skipif(bool(slowfs.missing()), reason=slowfs.missing())

PATIENCE_SECONDS = 20.0

LATENCY_MS = 400  # so long that a busy machine is no obstacle
SIZE = 192 * MIB
THREADS = 128
ENOUGH = 40  # requests in flight; sixteen readers of 1 MiB each would be far behind


@contextmanager
def most_threads() -> Iterator[list[int]]:
    """The most threads that the block had beside those before it; told when it has ended."""
    told, over = [0], threading.Event()
    before = len(os.listdir("/proc/self/task")) + 1  # noqa: PTH208 (names, not paths)

    def watch() -> None:
        while not over.wait(0.002):
            told[0] = max(told[0], len(os.listdir("/proc/self/task")) - before)  # noqa: PTH208

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield told
    finally:
        over.set()
        watcher.join()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[slowfs.Mount]:
    """A file of `SIZE` bytes in both formats, far away."""
    source = tmp_path / "source"
    source.mkdir()
    data = {f"t{number}": noise(torch.uint8, (SIZE // 12,), number) for number in range(12)}
    flashpack.save_file(data, source / "model.flashpack")
    safetensors.torch.save_file(data, source / "model.safetensors")
    with slowfs.mounted(source, tmp_path / "slow", latency_ms=LATENCY_MS) as mount:
        yield mount


@pytest.mark.parametrize(
    ("name", "verify"), [("model.flashpack", True), ("model.flashpack", False), ("model.safetensors", False)]
)
def test_eager_loads_have_many_reads_in_flight(far: slowfs.Mount, name: str, verify: bool) -> None:
    with most_threads() as most:
        got = flashpack.load_file(far.folder / name, eager=True, verify=verify)
    assert len(got) == 12
    counts = far.counts()
    assert counts.most_in_flight >= ENOUGH
    assert SIZE <= counts.bytes <= SIZE * 1.02
    assert most[0] <= THREADS + (os.cpu_count() or 1)


def test_mapped_files_are_read_ahead_with_many_reads_in_flight(far: slowfs.Mount) -> None:
    path = far.folder / "model.flashpack"
    with most_threads() as most:
        got = flashpack.load_file(path)
        end = time.monotonic() + PATIENCE_SECONDS
        while resident(path) < 0.99 and time.monotonic() < end:
            time.sleep(0.02)
    assert resident(path) >= 0.99
    counts = far.counts()
    assert counts.most_in_flight >= ENOUGH
    assert most[0] <= THREADS + (os.cpu_count() or 1)
    assert all(bool(tensor.any()) for tensor in got.values())
    assert SIZE * 0.99 <= counts.bytes + far.counts().bytes <= SIZE * 1.02  # nothing is read twice


def test_reading_ahead_ends_with_the_mapping(far: slowfs.Mount) -> None:
    flashpack.load_file(far.folder / "model.flashpack").clear()
    time.sleep(2 * LATENCY_MS / 1000)  # what was in flight has come
    far.counts()
    time.sleep(2 * LATENCY_MS / 1000)
    assert far.counts().requests == 0


# --- Many files. ------------------------------------------------------------------------------------


SHARDS, EACH = 64, 2 * MIB


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with a model of many files, each of several times what is read to find its index."""
    source = tmp_path / "source"
    source.mkdir()
    flashpack.save_file(small(), source / "model.flashpack", max_shard_size=EACH)
    assert len([*source.glob("model-*.flashpack")]) == SHARDS
    return source


def small() -> dict[str, Tensor]:
    return {f"t{number}": torch.full((EACH,), number, dtype=torch.uint8) for number in range(SHARDS)}


@pytest.mark.parametrize("eager", [True, None])
def test_shards_are_not_probed_with_more_than_they_hold(
    shards: Path, tmp_path: Path, eager: bool | None
) -> None:
    with slowfs.mounted(shards, tmp_path / "slow", latency_ms=2) as slow:
        assert_same(flashpack.load_file(slow.folder, eager=eager), small())
        assert SHARDS * EACH <= slow.counts().bytes <= SHARDS * EACH * 1.05


def test_shards_are_opened_together(shards: Path, tmp_path: Path) -> None:
    with slowfs.mounted(shards, tmp_path / "slow", latency_ms=20) as slow:
        with flashpack.open(slow.folder) as file:
            assert len(file.keys()) == SHARDS
        counts = slow.counts()
    assert counts.most_in_flight >= 8
    assert counts.requests <= 2 * SHARDS + 2
