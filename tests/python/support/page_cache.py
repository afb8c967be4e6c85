"""What the page cache holds of a file."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest


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
