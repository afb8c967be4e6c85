"""What the machine itself allows: the same bytes moved by bare system calls, with nothing else to do.

Python is no brake here: a call moves megabytes and runs without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measure import same_bytes

HUGE_PAGE = 2 << 20
SECTOR = 4096  # what O_DIRECT asks of lengths and offsets
CHUNK = 8 << 20
_POPULATE_READ = getattr(mmap, "MADV_POPULATE_READ", 22)  # the module has no name for it

Run = Callable[[], memoryview]


@dataclass(frozen=True)
class Limit:
    """`start(path)` does what the clock leaves out and gives what it sees: reading or writing a file."""

    name: str
    start: Callable[[Path], Run]


def huge_memory(size: int, *, faulted: bool = False) -> memoryview:
    """Fresh anonymous memory on huge pages, from the start of one, with room for a whole last sector."""
    space = mmap.mmap(-1, size + HUGE_PAGE + SECTOR, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    space.madvise(mmap.MADV_HUGEPAGE)
    skip = -ctypes.addressof(ctypes.c_char.from_buffer(space)) % HUGE_PAGE
    memory = memoryview(space)[skip : skip + -(-size // SECTOR) * SECTOR]
    if faulted:
        _fill(memory)
    return memory


def _fill(memory: memoryview) -> None:
    ones = b"\1" * min(CHUNK, len(memory))
    for at in range(0, len(memory), CHUNK):
        memory[at : at + CHUNK] = ones[: len(memory) - at]


def in_threads(work: Callable[[int], None], size: int, threads: int, chunk: int = CHUNK) -> None:
    """`work(offset)` for each chunk, the threads taking turns."""
    failures: list[BaseException] = []

    def run(first: int) -> None:
        try:
            for offset in range(first * chunk, size, threads * chunk):
                work(offset)
        except OSError as error:
            failures.append(error)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


def _read(path: Path, threads: int, *, flags: int = 0, faulted: bool = False, chunk: int = CHUNK) -> Run:
    size = path.stat().st_size
    ready = huge_memory(size, faulted=True) if faulted else None

    def run() -> memoryview:
        memory = ready or huge_memory(size)
        descriptor = os.open(path, os.O_RDONLY | flags)
        try:
            in_threads(
                lambda offset: _read_chunk(descriptor, memory[offset : offset + chunk], offset),
                size,
                threads,
                chunk,
            )
        finally:
            os.close(descriptor)
        return memory[:size]

    return run


def _read_chunk(descriptor: int, into: memoryview, offset: int) -> None:
    """A read comes back short at the end of the file, and may elsewhere."""
    while into and (count := os.preadv(descriptor, [into], offset)):
        into, offset = into[count:], offset + count


def _map(path: Path) -> Run:
    def run() -> memoryview:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        mapped.madvise(_POPULATE_READ)
        memory = memoryview(mapped)
        bytes(memory[::SECTOR])  # touches every page
        return memory

    return run


def _copy(path: Path, threads: int) -> Run:
    size = path.stat().st_size
    source, target = huge_memory(size, faulted=True), huge_memory(size, faulted=True)
    starts = [ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in (target, source)]

    def move(offset: int) -> None:
        target_at, source_at = (start + offset for start in starts)
        ctypes.memmove(target_at, source_at, min(CHUNK, size - offset))

    def run() -> memoryview:
        in_threads(move, size, threads)
        assert source[:SECTOR] == target[:SECTOR]  # and so both are still there
        return target[:size]

    return run


def _write(path: Path, threads: int, flags: int = 0) -> Run:
    """Write as many bytes as `path` has to a new file beside it, and see them to the disk."""
    size = path.stat().st_size
    memory = huge_memory(size, faulted=True)
    target = path.with_name(f"raw-{os.getpid()}")

    def run() -> memoryview:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            in_threads(
                lambda offset: _write_chunk(descriptor, memory[offset : offset + CHUNK], offset),
                len(memory) if flags else size,
                threads,
            )
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            target.rename(target.with_name("raw"))  # removed when the clock has stopped
        return memory[:size]

    return run


def _write_chunk(descriptor: int, source: memoryview, offset: int) -> None:
    while source:
        count = os.pwritev(descriptor, [source], offset)
        source, offset = source[count:], offset + count


def clean(folder: Path) -> None:
    (folder / "raw").unlink(missing_ok=True)


def check(path: Path, result: memoryview) -> None:
    """Raise ValueError unless a read gave the bytes of the file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        starts = [ctypes.c_char.from_buffer(each) for each in (mapped, result)]
        same = same_bytes(*map(ctypes.addressof, starts), len(result))
        del starts  # else the mapping cannot be closed
    if not same:
        raise ValueError(f"the bytes read are not those of {path}")


FRESH = "pread, fresh huge pages, 2 threads"
HOT = [
    Limit(FRESH, lambda path: _read(path, 2)),
    Limit("pread, faulted memory, 2 threads", lambda path: _read(path, 2, faulted=True)),
    Limit("memcpy, 2 threads", lambda path: _copy(path, 2)),
]
MAPPED = [Limit("private mmap, populated, touched", _map)]
COLD = [
    Limit("pread, buffered, 2 threads", lambda path: _read(path, 2)),
    *(
        Limit(f"O_DIRECT, depth {depth}", lambda path, depth=depth: _read(path, depth, flags=os.O_DIRECT))
        for depth in (1, 2, 4, 8)
    ),
]
SLOW = [
    Limit(
        f"O_DIRECT, 1 MiB, {threads} threads",
        lambda path, threads=threads: _read(path, threads, flags=os.O_DIRECT, chunk=1 << 20),
    )
    for threads in (16, 64, 128)
]
WRITE = [
    Limit("write, buffered + fsync", lambda path: _write(path, 1)),
    Limit("write, O_DIRECT + fsync, depth 1", lambda path: _write(path, 1, os.O_DIRECT)),
    Limit("write, O_DIRECT + fsync, depth 4", lambda path: _write(path, 4, os.O_DIRECT)),
]
