"""What this machine can do at best, without FlashPack: reads, copies, a device's link (by torch)."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

PIECE_BYTES = 8 << 20
_HUGE_PAGE_BYTES = 2 << 20
_ALIGN_BYTES = 4096
_COPY_BYTES = 64 << 20


def memory(size: int) -> mmap.mmap:
    """Fresh private memory, on huge pages where the kernel gives them."""
    fresh = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages serves small ones, slower
        fresh.madvise(mmap.MADV_HUGEPAGE)
    return fresh


def read(path: str, size: int, threads: int, *, direct: bool, reused: bool) -> float:
    """Seconds to read the first `size` bytes with `threads` threads: into fresh memory, or `reused` buffers.

    `direct`: past the page cache, whole pages only. Raises OSError where the file system refuses that.
    """
    handle = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    size -= size % _ALIGN_BYTES if direct else 0
    pieces = iter(range(0, size, PIECE_BYTES))
    lock = threading.Lock()
    target = memory(max(size, 1)) if not reused else None
    scratch = [memory(PIECE_BYTES) for _ in range(threads)] if reused else []
    for buffer in scratch:
        buffer.write(bytes(PIECE_BYTES))

    def work(number: int) -> None:
        for offset in _shared(pieces, lock):
            end = min(offset + PIECE_BYTES, size)
            with memoryview(target if target is not None else scratch[number]) as whole:
                start = offset if target is not None else 0
                with whole[start : start + end - offset] as place:
                    _fill(handle, place, offset)

    try:
        return _timed(work, threads)
    finally:
        os.close(handle)


def _shared(pieces: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    while True:
        with lock:
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def _fill(handle: int, place: memoryview, offset: int) -> None:
    done = 0
    while done < len(place):
        count = os.preadv(handle, [place[done:]], offset + done)
        if count == 0:
            raise OSError(f"the file ends at byte {offset + done}: truncated while it was read")
        done += count


def _timed(work: Callable[[int], None], threads: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: None, range(threads)))  # so that the threads exist
        started = time.perf_counter()
        list(pool.map(work, range(threads)))
        return time.perf_counter() - started


def copy_rate(threads: int) -> float:
    """Bytes per second that `threads` threads copy within memory that is there already."""
    sources, targets = ([ctypes.create_string_buffer(_COPY_BYTES) for _ in range(threads)] for _ in range(2))
    for buffer in (*sources, *targets):
        ctypes.memset(buffer, 1, _COPY_BYTES)

    def work(number: int) -> None:
        ctypes.memmove(targets[number], sources[number], _COPY_BYTES)

    return threads * _COPY_BYTES / _timed(work, threads)


def drop_from_cache(path: str) -> None:
    """Ask the kernel to forget its pages of the file, after those that are dirty have been written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def link_rate(device: str) -> float:
    """Bytes per second of one large copy from pinned memory to `device`."""
    import torch

    size = _COPY_BYTES * 4
    source = torch.ones(size, dtype=torch.uint8).pin_memory()
    target = torch.empty(size, dtype=torch.uint8, device=device)
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(device)
    return size / (time.perf_counter() - started)
