"""Mapped loads of what the page cache does not hold are read ahead in the background, unless eager=False."""

from __future__ import annotations

import time
from pathlib import Path

import flashpack
import pytest
import torch
from helpers import MIB
from page_cache import forget, resident

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


def has_huge_pages(path: Path) -> list[bool]:
    """Of each mapping of the whole file, whether huge pages are asked for."""
    _, *mappings = Path("/proc/self/smaps").read_text().split(f" {path}\n")
    whole = [text for text in mappings if int(text.split("Size:")[1].split()[0]) << 10 >= path.stat().st_size]
    return ["hg" in text.split("VmFlags:")[1].split("\n")[0].split() for text in whole]


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


def cached(path: Path, enough: float) -> bool:
    """Whether the page cache comes to hold that part of the file in time."""
    end = time.monotonic() + PATIENCE_SECONDS
    while resident(path) < enough and time.monotonic() < end:
        time.sleep(0.05)
    return resident(path) >= enough


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="a kernel without huge pages"
)
def test_huge_pages_are_asked_for_where_much_is_read_ahead(cold: Path) -> None:
    """In small ones the next load would find the file at half the speed, whatever loads it."""
    lazy = flashpack.load_file(cold, eager=False)
    assert has_huge_pages(cold) == [False]
    ahead = flashpack.load_file(cold)
    assert sorted(has_huge_pages(cold)) == [False, True]
    assert cached(cold, 0.99)
    assert all(torch.equal(ahead[name], lazy[name]) for name in lazy)


def test_scattered_tensors_do_not_bring_in_what_lies_between(path: Path) -> None:
    names = [f"{number:03}" for number in range(192)]
    flashpack.save_file({name: torch.ones(MIB // 2, dtype=torch.uint8) for name in names}, path)
    forget(path)
    kept = flashpack.load_file(path, names=names[::8])
    assert cached(path, 0.12)
    time.sleep(0.2)
    assert resident(path) < 0.5
    assert all(bool(tensor.all()) for tensor in kept.values())
