"""Whatever fails during a load to a device: a clear exception, the model as it was, nothing left behind, and
the next load works."""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import engine
import fakecuda
import flashpack
import pytest
import torch
from engine import BUSY, Net, assert_arrived, saved, untouched
from flashpack._core import ops as _ops
from helpers import MIB, flip_byte
from torch import nn

pytestmark = pytest.mark.usefixtures("emulator")

SOON_SECONDS = 5.0  # of waiting for a load to begin


class Wide(nn.Module):
    """Four MiB in layers of a quarter, so that a unit of reading goes to several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(256, 255) for _ in range(16))


@contextmanager
def nothing_left(**knobs: float) -> Iterator[None]:
    """After the block and a release of the pool there is as much of everything as before."""
    flashpack.release_pinned_pool()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = {name: fakecuda.counter(name) for name in ("pinned_bytes", "device_bytes")}
    engine.assert_no_conflicts()
    with fakecuda.counting() as counters:
        with fakecuda.knobs(**knobs):
            yield
        flashpack.release_pinned_pool()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    engine.assert_no_conflicts()
    assert counters["streams_created"] == counters["streams_destroyed"]
    assert counters["events_created"] == counters["events_destroyed"]
    assert {name: counters[name] for name in before} == before
    assert _ops.pinned_usage().bytes == 0


# --- Calls that fail. ------------------------------------------------------------------------------

# Calls are counted over all threads, so that the Nth is another step of the load each time. In place there is
# a copy for every tensor instead of one for every unit of reading, and nothing is allocated.
CALLS = [
    *("cuDevicePrimaryCtxRetain:1:oom", "cuDeviceGet:1:invalid"),
    *(f"cuStreamCreate:{nth}:oom" for nth in (1, 2, 4)),
    *(f"cuEventCreate:{nth}:oom" for nth in (1, 2, 5)),
    *(f"cuEventRecord:{nth}:invalid" for nth in (1, 2, 4)),
    *(f"cuStreamWaitEvent:{nth}:invalid" for nth in (1, 3, 4)),
    *(f"cuMemcpyHtoDAsync:{nth}:invalid" for nth in (1, 2, 4)),
    *(f"cuCtxPushCurrent:{nth}:invalid" for nth in (1, 2, 3)),
    "cuMemcpyHtoDAsync:3+:oom",
]
NEW = ["cudaMalloc:1+", *CALLS]
IN_PLACE = [*CALLS, *(f"cuMemcpyHtoDAsync:{nth}:invalid" for nth in (6, 11, 17, 30))]


def calls(folder: str, device: str) -> None:
    source, model = Wide(), Wide().to(device)
    path, want = saved(folder, source), engine.state_of(source)
    torch.cuda.synchronize()
    with engine.environment(**BUSY):
        for rule in NEW:
            with nothing_left(latency_us=1000):
                with untouched(model), fakecuda.faults(rule):
                    failed(rule, model, path)
                got = flashpack.load_file(path, device)
                assert_arrived(got, want, device)
                del got
        places = engine.places_of(model)
        for rule in IN_PLACE:
            with nothing_left(latency_us=1000):
                with fakecuda.faults(rule):
                    failed(rule, model, path, in_place=True)
                # At once: the same buffers, to the same memory.
                flashpack.assign_from_file(model, path, in_place=True)
                assert_arrived(model.state_dict(), want, device)
        assert engine.places_of(model) == places


def failed(rule: str, model: nn.Module, path: Path, **options: bool) -> None:
    """The load fails, and says so as it should."""
    before = fakecuda.counter("faults_injected")
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        flashpack.assign_from_file(model, path, **options)
    assert fakecuda.counter("faults_injected") > before, rule
    call, text = rule.partition(":")[0], str(raised.value)
    if call == "cudaMalloc":
        assert isinstance(raised.value, torch.OutOfMemoryError)
        assert text.startswith("CUDA out of memory. Tried to allocate")
    else:
        assert isinstance(raised.value, MemoryError) == rule.endswith(":oom"), rule
        assert f"CUDA: {call}" in text
        assert "[flashpack" not in text


@pytest.mark.parametrize("mode", ["strict", "lazy:1"])
def test_calls_fail(mode: str, tmp_path: Path) -> None:
    fakecuda.call(calls, str(tmp_path), "cuda", mode=mode).check()


# --- Memory that cannot be pinned. -----------------------------------------------------------------


def no_pinning(folder: str, first: int) -> None:
    want = engine.pieces(6, 0)
    path = saved(folder, want)
    torch.empty(1, device="cuda")
    fakecuda.reset()
    with engine.environment(**BUSY), fakecuda.faults(f"cuMemHostRegister:{first}+:oom"):
        with (
            pytest.warns(RuntimeWarning, match="could not be pinned") as caught,
            fakecuda.counting() as counters,
        ):
            got = flashpack.load_file(path, "cuda")
        assert len(caught) == 1
        assert counters["pageable_copies"] > 0
        assert bool(counters["async_copies"]) == (first > 1)
        assert _ops.pinned_usage().pageable
        assert_arrived(got, want, "cuda")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one is enough
            got = flashpack.load_file(path, "cuda")
            assert_arrived(got, want, "cuda")
    with fakecuda.counting() as counters:
        got = flashpack.load_file(path, "cuda")  # pinning works again, and is tried
    assert counters["pageable_copies"] == 0
    assert fakecuda.counter("pinned_bytes") == _ops.pinned_usage().bytes > 0
    assert_arrived(got, want, "cuda")
    engine.assert_no_conflicts()
    flashpack.release_pinned_pool()
    assert _ops.pinned_usage().bytes == fakecuda.counter("pinned_bytes") == 0


@pytest.mark.parametrize(("mode", "first"), [("strict", 1), ("strict", 3), ("lazy:1", 1), ("plain", 2)])
def test_memory_cannot_be_pinned(mode: str, first: int, tmp_path: Path) -> None:
    fakecuda.call(no_pinning, str(tmp_path), first, mode=mode).check()


def broken_pinning(folder: str) -> None:
    want = engine.pieces(6, 0)
    path = saved(folder, want)
    torch.empty(1, device="cuda")
    with nothing_left(), engine.environment(**BUSY):
        with fakecuda.faults("cuMemHostRegister:1:invalid"), warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing says that pageable memory would do
            with pytest.raises(RuntimeError, match="CUDA: cuMemHostRegister failed"):
                flashpack.load_file(path, "cuda")
        assert not _ops.pinned_usage().pageable
        assert_arrived(flashpack.load_file(path, "cuda"), want, "cuda")


def test_errors_of_pinning_that_pageable_memory_does_not_cure(tmp_path: Path) -> None:
    fakecuda.call(broken_pinning, str(tmp_path), mode="strict").check()


# --- Copies of an earlier load, of which the driver says that they failed. -------------------------


def earlier_copies_fail(folder: str) -> None:
    want = engine.pieces(6, 0)
    path = saved(folder, want)
    torch.empty(1, device="cuda")
    with nothing_left(latency_us=1000), engine.environment(**BUSY):
        flashpack.load_file(path, "cuda")
        before = fakecuda.counter("faults_injected")
        with fakecuda.faults("cuEventQuery:1:invalid"):
            got = flashpack.load_file(path, "cuda")
        assert fakecuda.counter("faults_injected") == before + 1
        assert_arrived(got, want, "cuda")
        del got
        assert _ops.pinned_usage().bytes == fakecuda.counter("pinned_bytes") > 0
        assert_arrived(flashpack.load_file(path, "cuda"), want, "cuda")
        torch.cuda.synchronize()


@pytest.mark.parametrize("mode", ["strict", "lazy:1"])
def test_copies_of_an_earlier_load_fail(mode: str, tmp_path: Path) -> None:
    fakecuda.call(earlier_copies_fail, str(tmp_path), mode=mode).check()


# --- Children made by fork. ------------------------------------------------------------------------


def forked(folder: str) -> None:
    want = engine.pieces(6, 0)
    path = saved(folder, want)
    assert_arrived(flashpack.load_file(path, "cuda"), want, "cuda")
    torch.cuda.synchronize()
    held = _ops.pinned_usage().bytes
    child = os.fork()
    if not child:
        code = 1
        try:
            in_the_child(folder, path, want)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert _ops.pinned_usage().bytes == held == fakecuda.counter("pinned_bytes")
    assert_arrived(flashpack.load_file(path, "cuda"), want, "cuda")


def in_the_child(folder: str, path: Path, want: dict[str, torch.Tensor]) -> None:
    """What the parent has pinned is not here: other memory is at its place, and stays."""
    mine = [mmap.mmap(-1, MIB) for _ in range(400)]
    for memory in mine:
        memory.write(b"mine")
    assert _ops.pinned_usage().bytes == 0
    flashpack.release_pinned_pool()
    assert all(memory[:4] == b"mine" for memory in mine)
    engine.assert_same(flashpack.load_file(path), want)
    flashpack.save_file(want, Path(folder) / "child.flashpack")
    engine.assert_same(flashpack.load_file(Path(folder) / "child.flashpack"), want)
    with pytest.raises(RuntimeError, match=r"fork|initialization"):
        flashpack.load_file(path, "cuda")


def test_children_made_by_fork(tmp_path: Path) -> None:
    fakecuda.call(forked, str(tmp_path)).check()


# --- Files that fail while they are read. ----------------------------------------------------------


def bad_files(folder: str, device: str) -> None:
    source, model = Wide(), Wide().to(device)
    want = engine.state_of(source)
    torch.cuda.synchronize()
    for size in (0.9, 0.5, 0.02):
        path = saved(folder, source)
        flip_byte(path, int(path.stat().st_size * size))
        with engine.environment(**BUSY), nothing_left(latency_us=1000):
            with untouched(model), pytest.raises(flashpack.ChecksumError):
                flashpack.assign_from_file(model, path)
            with pytest.raises(flashpack.ChecksumError):
                flashpack.assign_from_file(model, path, in_place=True)
            good = saved(folder, source)
            flashpack.assign_from_file(model, good, in_place=True)
            assert_arrived(model.state_dict(), want, device)
    truncated(folder, model)


def truncated(folder: str, model: nn.Module) -> None:
    """A file that becomes shorter while a slow link lets the readers go on only slowly."""
    path = saved(folder, Wide())
    size = path.stat().st_size

    def cut() -> None:
        wait_for_copies()
        os.truncate(path, size // 2)

    settings = {**BUSY, "FLASHPACK_READ_THREADS": "1"}
    with engine.environment(**settings), nothing_left(bw_h2d=8e6), untouched(model):
        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(OSError, match="truncated while it was read"):
            flashpack.assign_from_file(model, path)
        thread.join()


def wait_for_copies() -> None:
    end = time.monotonic() + SOON_SECONDS
    while not fakecuda.counter("h2d_copies") and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("mode", ["plain", "strict", "lazy:1"])
def test_reads_fail(mode: str, tmp_path: Path) -> None:
    fakecuda.call(bad_files, str(tmp_path), "cuda", mode=mode).check()


# --- A device that is lost. ------------------------------------------------------------------------


def device_lost(folder: str, rule: str) -> None:
    source, model = Net(), Net()
    path, want = saved(folder, source), engine.state_of(source)
    torch.empty(1, device="cuda")
    with fakecuda.faults(rule), pytest.raises(RuntimeError, match=r"(?i)illegal"):
        flashpack.load_file(path, "cuda")
        torch.cuda.synchronize()  # a late fault shows when the device gets there
    with untouched(model), pytest.raises(RuntimeError, match=r"(?i)illegal"):
        flashpack.assign_from_file(model, path, device="cuda")
    flashpack.assign_from_file(model, path)  # the process lives
    engine.assert_same(engine.state_of(model), want)
    flashpack.release_pinned_pool()
    assert _ops.pinned_usage().bytes == 0


@pytest.mark.parametrize("rule", ["cuMemcpyHtoDAsync:2:illegal", "cuMemcpyHtoDAsync:2:illegal:late"])
@pytest.mark.parametrize("mode", ["plain", "lazy:1"])
def test_the_device_is_lost(mode: str, rule: str, tmp_path: Path) -> None:
    fakecuda.call(device_lost, str(tmp_path), rule, mode=mode).check()


# --- Ctrl-C. ---------------------------------------------------------------------------------------


def interrupted(folder: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs us in the background ignores it
    model = nn.Linear(1024, 24 * 1024).to("cuda")  # more than a load without a thread of its own
    path = saved(folder, nn.Linear(1024, 24 * 1024))
    want = flashpack.load_file(path)
    little = {"FLASHPACK_READ_CHUNK_BYTES": str(MIB), "FLASHPACK_READ_THREADS": "2"}  # on its way at a time
    with engine.environment(**little):
        for in_place in (False, True):
            places = engine.places_of(model)
            with untouched(*([] if in_place else [model])):
                assert bytes_until_stopped(model, path, in_place=in_place) < path.stat().st_size // 2
            assert engine.places_of(model) == places
            flashpack.assign_from_file(model, path, in_place=in_place)
            assert_arrived(model.state_dict(), want, "cuda")


def bytes_until_stopped(model: nn.Module, path: Path, **options: bool) -> int:
    """The bytes that a load of twelve seconds has copied when Ctrl-C, pressed at its beginning, ends it."""

    def press() -> None:
        wait_for_copies()
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    before = fakecuda.counter("h2d_bytes")
    with nothing_left(bw_h2d=8e6, data=0):
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            flashpack.assign_from_file(model, path, **options)
    thread.join()
    return fakecuda.counter("h2d_bytes") - before


@pytest.mark.parametrize("mode", ["plain", "strict", "lazy:1"])
def test_ctrl_c(mode: str, tmp_path: Path) -> None:
    fakecuda.call(interrupted, str(tmp_path), mode=mode).check()


def watched_save(folder: str) -> None:
    want = {"weight": torch.arange(24 << 20, dtype=torch.float32)}  # more than is saved unwatched
    state = {name: tensor.to("cuda") for name, tensor in want.items()}
    told: list[tuple[int, int]] = []
    path = Path(folder, "model.flashpack")
    flashpack.pack_to_file(state, path, silent=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] >= want["weight"].nbytes

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with fakecuda.knobs(latency_us=100_000), pytest.raises(KeyboardInterrupt):
        flashpack.pack_to_file(state, Path(folder, "other.flashpack"), silent=stop)
    assert [each.name for each in Path(folder).iterdir()] == [path.name]
    engine.assert_same(flashpack.load_file(path), want)


def test_a_save_from_a_device_shows_progress_and_can_be_stopped(tmp_path: Path) -> None:
    fakecuda.call(watched_save, str(tmp_path)).check()
