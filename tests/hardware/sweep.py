"""How fast bytes get to the GPU: what the link takes, and what each way to drive it makes of that."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measure
import torch
from limits import huge_memory
from torch import Tensor

from .child import CannotRunError

NODES = Path("/sys/devices/system/node")
ROUNDS = 3
Row = dict[str, Any]


@contextmanager
def allocated(size: int) -> Iterator[Tensor]:
    """Pinned memory of CUDA's own (cuMemHostAlloc)."""
    yield torch.empty(size, dtype=torch.uint8, pin_memory=True)


@contextmanager
def registered(size: int) -> Iterator[Tensor]:
    """Huge pages of this process, pinned for CUDA (cuMemHostRegister)."""
    memory = torch.frombuffer(huge_memory(size, faulted=True), dtype=torch.uint8)[:size]
    runtime = torch.cuda.cudart()
    refused = runtime.cudaHostRegister(memory.data_ptr(), size, 0)
    if int(refused):
        raise CannotRunError(f"cudaHostRegister gives error {int(refused)}")
    try:
        yield memory
    finally:
        torch.cuda.synchronize()
        runtime.cudaHostUnregister(memory.data_ptr())


PINNED = {"cuMemHostAlloc": allocated, "cuMemHostRegister": registered}


def fastest(work: Callable[[], None], device: str) -> float:
    """Seconds until all that `work` queues is done, of the fastest run of a few."""
    seconds = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def copy_all(source: Tensor, target: Tensor, piece: int, streams: Sequence[torch.cuda.Stream]) -> None:
    """Queues the copy of all of `source`, the streams taking turns."""
    for number, offset in enumerate(range(0, len(source), piece)):
        with torch.cuda.stream(streams[number % len(streams)]):
            target[offset : offset + piece].copy_(source[offset : offset + piece], non_blocking=True)


def best_rate(source: Tensor, target: Tensor, piece: int, streams: int, device: str) -> float:
    """Bytes per second of the fastest of a few runs."""
    ways = [torch.cuda.Stream(device) for _ in range(streams)]
    return len(source) / fastest(functools.partial(copy_all, source, target, piece, ways), device)


def link(device: str, size: int) -> float:
    """The pinned-to-device limit: bytes per second of one large copy, the best of several."""
    target = torch.empty(size, dtype=torch.uint8, device=device)
    with allocated(size) as source:
        rate = max(best_rate(source, target, size, 1, device) for _ in range(ROUNDS))
        assert torch.equal(target.cpu(), source)
    return rate


def copies(device: str, size: int, pieces: Sequence[int], streams: Sequence[int]) -> list[Row]:
    """Rates of copies by piece, streams and kind of pinned memory, and how long pinning takes."""
    target = torch.empty(size, dtype=torch.uint8, device=device)
    rows = []
    for kind, pinned in PINNED.items():
        started = time.perf_counter()
        with pinned(size) as source:
            pin_seconds = time.perf_counter() - started
            for piece, count in itertools.product(pieces, streams):
                rate = best_rate(source, target, piece, count, device)
                rows.append(
                    {"memory": kind, "piece": piece, "streams": count, "rate": rate, "pin_s": pin_seconds}
                )
    return rows


def pipeline(device: str, path: str, pieces: Sequence[int], readers: Sequence[int]) -> list[Row]:
    """Rates of bare readers of a cached file, by piece and number; each has a stream and two pieces."""
    measure.make_hot(Path(path))
    size = Path(path).stat().st_size
    target = torch.empty(size, dtype=torch.uint8, device=device)
    rows = []
    for piece, count in itertools.product(pieces, readers):
        staging = [torch.empty(2, piece, dtype=torch.uint8, pin_memory=True) for _ in range(count)]
        work = functools.partial(read_and_copy, path, target, staging)
        rows.append({"piece": piece, "readers": count, "rate": size / fastest(work, device)})
    assert torch.equal(target.cpu(), torch.from_file(path, size=size, dtype=torch.uint8))
    return rows


def read_and_copy(path: str, target: Tensor, staging: Sequence[Tensor]) -> None:
    """Reads the file with a thread for each of `staging`, which copies what it read while it reads more."""
    offsets, lock = iter(range(0, len(target), staging[0].shape[1])), threading.Lock()
    failures: list[BaseException] = []

    def run(buffers: Tensor) -> None:
        stream, events = torch.cuda.Stream(target.device), [torch.cuda.Event(), torch.cuda.Event()]
        try:
            with Path(path).open("rb", buffering=0) as file, torch.cuda.stream(stream):
                for turn in itertools.count():
                    with lock:
                        offset = next(offsets, None)
                    if offset is None:
                        break
                    event, buffer = events[turn % 2], buffers[turn % 2]
                    event.synchronize()
                    bytes_read = os.preadv(file.fileno(), [memoryview(buffer.numpy())], offset)
                    there = target[offset : offset + bytes_read]
                    assert len(there) == min(len(buffer), len(target) - offset), "a short read"
                    there.copy_(buffer[:bytes_read], non_blocking=True)
                    event.record(stream)
            stream.synchronize()
        except BaseException as error:  # noqa: BLE001 (raised below)
            failures.append(error)

    threads = [threading.Thread(target=run, args=(buffers,)) for buffers in staging]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def engine(device: str, path: str, pieces: Sequence[int], readers: Sequence[int]) -> list[Row]:
    """Rates of FlashPack's loads of a cached file, by the settings of piece and readers; verified and not."""
    import flashpack

    measure.make_hot(Path(path))
    size = Path(path).stat().st_size
    rows = []
    os.environ["FLASHPACK_NO_THREAD_CLAMP"] = "1"
    for piece, count, verify in itertools.product(pieces, readers, (False, True)):
        os.environ.update({"FLASHPACK_READ_CHUNK_BYTES": str(piece), "FLASHPACK_READ_THREADS": str(count)})
        work = functools.partial(load_and_free, path, device, verify)
        row = {"piece": piece, "readers": count, "verified": verify, "rate": size / fastest(work, device)}
        told = flashpack.last_load()
        rows.append({**row, "threads": told.threads, "limit": told.limit})
    return rows


def load_and_free(path: str, device: str, verify: bool) -> None:
    import flashpack

    flashpack.load_file(path, device, verify=verify)


def nodes(device: str, size: int, bus: str) -> list[Row]:
    """The pinned-to-device rate from the memory of each NUMA node; `near` is the GPU's own."""
    told = Path("/sys/bus/pci/devices", bus.lower(), "numa_node")
    near = int(told.read_text()) if told.exists() else -1
    allowed = os.sched_getaffinity(0)
    found = {number: processors & allowed for number, processors in processors_of_nodes().items()}
    found = {number: processors for number, processors in found.items() if processors}
    if len(found) < 2:
        raise CannotRunError("this process may use one NUMA node")
    rows = []
    for number, processors in found.items():
        os.sched_setaffinity(0, processors)
        target = torch.empty(size, dtype=torch.uint8, device=device)
        with registered(size) as source:  # touched by this thread, so on this node
            rate = best_rate(source, target, size, 1, device)
        rows.append({"node": number, "near": number == near, "rate": rate})
    return rows


def processors_of_nodes() -> dict[int, set[int]]:
    found = {}
    for folder in NODES.glob("node[0-9]*"):
        ranges = [part.split("-") for part in (folder / "cpulist").read_text().strip().split(",") if part]
        found[int(folder.name[4:])] = {
            cpu for part in ranges for cpu in range(int(part[0]), int(part[-1]) + 1)
        }
    return found
