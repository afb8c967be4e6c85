"""What a run costs, and the state of the page cache before it. Imports no torch of its own."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PAGE = mmap.PAGESIZE
_WARM_BYTES = 8 << 20
_LARGE_BYTES = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def cached_fraction(path: Path) -> float:
    """The part of the file that the page cache holds, 0 to 1."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        pages = ctypes.create_string_buffer(-(-size // PAGE))
        failed = _libc.mincore(ctypes.byref(first), ctypes.c_size_t(size), pages)
        del first  # else the mapping cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(path))
    return sum(byte & 1 for byte in pages.raw[:-1]) / (len(pages) - 1 or 1)


def make_hot(path: Path) -> None:
    """Read the file into the page cache, again where the machine has dropped pages meanwhile."""
    buffer = bytearray(_WARM_BYTES)
    for _ in range(3):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        if cached_fraction(path) > 0.999:
            return


def make_cold(path: Path) -> None:
    """Drop the file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ready_memory(size: int) -> None:
    """Touch `size` bytes of memory, if there is as much, and free them again.

    A virtual machine's host takes back memory that lies free, and the first touch after that costs several
    times as much: whether a run met such memory would be chance.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * PAGE
    with mmap.mmap(-1, min(size, free * 3 // 4), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as space:
        space.madvise(mmap.MADV_HUGEPAGE)
        with memoryview(space) as memory, memory[::PAGE] as pages:
            pages[:] = bytes(len(pages))


def prepare(path: Path, state: str, copies: int = 1) -> float:
    """Make memory for `copies` of the file ready, and the file `hot` or `cold`; the cached fraction of it."""
    make = {"hot": make_hot, "cold": make_cold}[state]
    make(path)  # first, as the page cache would take the memory that was made ready
    cached = 1 if state == "cold" else 0  # copies that the page cache will take memory for
    ready_memory((copies + cached) * path.stat().st_size)
    make(path)
    return cached_fraction(path)


def memory() -> dict[str, int]:
    """Bytes of this process: VmRSS, VmHWM (the peak since `measured` began), RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM", "RssAnon")}


def reset_peak() -> None:
    """Let the peak of this process's memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def measured(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What `work` gives, and its seconds, CPU seconds and memory beyond what there was before."""
    reset_peak()
    before = memory()
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = memory()
    return result, {
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_rss": after["VmHWM"],
        "extra_rss": after["VmHWM"] - before["VmRSS"],
        "gained_rss": after["VmRSS"] - before["VmRSS"],
        "gained_anon": after["RssAnon"] - before["RssAnon"],
    }


def same_bytes(one: int, other: int, size: int) -> bool:
    """Whether `size` bytes at two addresses are the same."""
    return bool(_libc.memcmp(ctypes.c_void_p(one), ctypes.c_void_p(other), ctypes.c_size_t(size)) == 0)


def touch(tensors: Iterable[Tensor]) -> None:
    """Read a byte of every page of the tensors, as their first use would."""
    import torch

    for tensor in tensors:
        if tensor.nbytes >= _LARGE_BYTES:
            tensor.detach().reshape(-1).view(torch.uint8)[::PAGE].sum()
            continue
        start = tensor.data_ptr()  # a torch call takes longer than all the pages of a small tensor
        for address in range(start, start + tensor.nbytes, PAGE):
            ctypes.c_ubyte.from_address(address).value  # noqa: B018 (the access itself)


def then_touched(seconds: dict[str, float], tensors: Iterable[Tensor]) -> dict[str, float]:
    """`seconds` of a load, and those until each page of what it gave has been touched."""
    _, touched = measured(lambda: touch(tensors))
    return seconds | {
        "touched_wall_s": seconds["wall_s"] + touched["wall_s"],
        "touched_cpu_s": seconds["cpu_s"] + touched["cpu_s"],
        "touched_anon": seconds["gained_anon"] + touched["gained_anon"],
        "peak_rss": max(seconds["peak_rss"], touched["peak_rss"]),
        "extra_rss": max(seconds["extra_rss"], seconds["gained_rss"] + touched["extra_rss"]),
    }
