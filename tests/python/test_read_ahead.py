"""Mapped loads of what the page cache does not hold are read ahead in the background, unless eager=False."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import flashpack
import pytest
import torch
from helpers import MIB

SIZE = 64 * MIB
PATIENCE_SECONDS = 20.0


def forget(path: Path) -> None:
    """Drops the file from the page cache; skips where the file system keeps it."""
    with path.open("rb") as file:
        os.fsync(file)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path) > 0.1:
        pytest.skip("this file system is memory")


def resident(path: Path) -> float:
    """The part of the file that is in the page cache. Asking by reading would start reads."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as view:
        pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(view)
        failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(view)), pages)
        del start
    assert not failed, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages) / len(pages)


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
