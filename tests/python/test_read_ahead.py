"""Mapped loads of what the page cache does not hold are read ahead in the background, unless eager=False."""

from __future__ import annotations

import time
from pathlib import Path

import flashpack
import pytest
import torch
from helpers import MIB
from page_cache import forget

SIZE = 64 * MIB
PATIENCE_SECONDS = 20.0


@pytest.fixture
def cold(path: Path) -> Path:
    flashpack.save_file({f"t{i}": torch.ones(SIZE // 4, dtype=torch.uint8) for i in range(4)}, path)
    forget(path)
    return path


def read_so_far() -> int:
    """Bytes that this process has had fetched from disks."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["read_bytes"])


def read_within(seconds: float, before: int, enough: float) -> float:
    """The part of the file fetched from the disk since `before`, when it is enough or that time is over."""
    end = time.monotonic() + seconds
    while read_so_far() - before < enough * SIZE and time.monotonic() < end:
        time.sleep(0.05)
    return (read_so_far() - before) / SIZE


def flags_of_mappings(path: Path) -> list[list[str]]:
    """What the kernel knows of each mapping of the file, in its two-letter names."""
    _, *parts = Path("/proc/self/smaps").read_text().split(f" {path}\n")
    return [part.split("VmFlags: ")[1].split("\n")[0].split() for part in parts]


def test_mapped_files_are_read_ahead(cold: Path) -> None:
    before = read_so_far()
    tensors = flashpack.load_file(cold)
    assert read_within(PATIENCE_SECONDS, before, 0.9) >= 0.9
    assert all(bool(tensor.all()) for tensor in tensors.values())


def test_only_what_was_asked_for_is_read_ahead(cold: Path) -> None:
    before = read_so_far()
    tensors = flashpack.load_file(cold, names=["t1"])
    assert read_within(1, before, 0.6) < 0.6
    assert bool(tensors["t1"].all())


def test_nothing_is_read_when_that_is_asked_for(cold: Path) -> None:
    model = torch.nn.ParameterDict({f"t{i}": torch.zeros(1) for i in range(4)})
    for name in model:
        model[name] = torch.nn.Parameter(torch.empty(SIZE // 4, dtype=torch.uint8), requires_grad=False)
    before = read_so_far()
    flashpack.assign_from_file(model, cold, eager=False)
    tensors = flashpack.load_file(cold, eager=False)
    assert read_within(0.5, before, 0.3) < 0.3
    assert bool(tensors["t3"].all())
    assert bool(model["t0"].all())


def test_pages_of_what_is_read_ahead_are_huge(cold: Path) -> None:
    """With small ones the next load from the page cache takes twice as long, whatever loads it."""
    assert Path("/sys/kernel/mm/transparent_hugepage").is_dir(), "this kernel has no huge pages"
    lazy = flashpack.load_file(cold, eager=False)
    assert ["hg" in flags for flags in flags_of_mappings(cold)] == [False]
    ahead = flashpack.load_file(cold)
    assert any("hg" in flags for flags in flags_of_mappings(cold))
    assert all(torch.equal(ahead[name], lazy[name]) for name in lazy)
