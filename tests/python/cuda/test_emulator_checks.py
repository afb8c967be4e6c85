"""Programs with a mistake, which the emulator's modes must find, and the same programs without it, which must
pass in all of them."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable

import cuda_driver as cuda
import fakecuda
import pytest
from cuda_driver import MIB

pytestmark = pytest.mark.usefixtures("emulator")

WRONG = 3  # exit status of a program whose result is wrong


def verdict(right: bool) -> None:
    if not right:
        raise SystemExit(WRONG)


def reuse(correct: bool) -> None:
    """One staging buffer for two chunks, filled again without waiting for the first copy."""
    cuda.use()
    to, staging = cuda.alloc(2 * MIB), cuda.Pinned(MIB)
    on, copied = cuda.stream(), cuda.event()
    for chunk in range(2):
        if correct and chunk:
            cuda.do("cuEventSynchronize", copied)
        staging.fill(1 + chunk)
        cuda.to_device(to + chunk * MIB, staging.at, MIB, on)
        cuda.record(copied, on)
    verdict(cuda.read(to, 2 * MIB) == b"\1" * MIB + b"\2" * MIB)


def reuse_registered(correct: bool) -> None:
    """The same with memory of the program's own."""
    cuda.use()
    memory = mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    to, on = cuda.alloc(MIB), cuda.stream()
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    cuda.do("cuMemHostRegister_v2", at, MIB, 0)
    ctypes.memset(at, 1, MIB)
    cuda.to_device(to, at, MIB, on)
    if correct:
        cuda.synchronize(on)
    ctypes.memset(at, 2, MIB)
    verdict(cuda.read(to, MIB) == b"\1" * MIB)


def use_before_arrival(correct: bool) -> None:
    """A second stream reads what the first has not yet brought."""
    cuda.use()
    one, two, arrived = cuda.stream(), cuda.stream(), cuda.event()
    to, further, source = cuda.alloc(MIB), cuda.alloc(MIB), cuda.Pinned(MIB)
    source.fill(1)
    cuda.do("cuMemsetD8Async", to, 0, MIB, one)
    cuda.synchronize(one)
    cuda.to_device(to, source.at, MIB, one)
    cuda.record(arrived, one)
    if correct:
        cuda.wait(two, arrived)
    cuda.on_device(further, to, MIB, two)
    cuda.synchronize(two)
    verdict(cuda.read(further, MIB) == b"\1" * MIB)


def read_before_arrival(correct: bool) -> None:
    """The host reads a buffer that the device still writes."""
    cuda.use()
    on, source, back = cuda.stream(), cuda.alloc(MIB), cuda.Pinned(MIB)
    cuda.do("cuMemsetD8_v2", source, 1, MIB)
    back.fill(0)
    cuda.to_host(back.at, source, MIB, on)
    if correct:
        cuda.synchronize(on)
    verdict(back.bytes == b"\1" * MIB)


def free_early(correct: bool) -> None:
    """A pinned buffer is given back while the device reads it."""
    cuda.use()
    on, to, source = cuda.stream(), cuda.alloc(MIB), cuda.Pinned(MIB)
    source.fill(1)
    cuda.to_device(to, source.at, MIB, on)
    if correct:
        cuda.synchronize(on)
    source.free()
    verdict(cuda.read(to, MIB) == b"\1" * MIB)


def touch_device_memory(correct: bool) -> None:
    """The host follows a device pointer."""
    cuda.use()
    to = cuda.alloc(MIB)
    if not correct:
        ctypes.string_at(to, 16)


PROGRAMS = [reuse, reuse_registered, use_before_arrival, read_before_arrival, free_early, touch_device_memory]


@pytest.mark.parametrize("mode", fakecuda.MODES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_correct_program_passes(program: Callable[[bool], None], mode: str) -> None:
    counters = fakecuda.call(program, True, mode=mode).check().counters
    assert not counters["races"] + counters["frees_in_flight"]


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("program", [reuse, reuse_registered, read_before_arrival])
def test_lazy_work_shows_the_mistake_in_the_bytes(program: Callable[[bool], None], seed: int) -> None:
    assert fakecuda.call(program, False, mode=f"lazy:{seed}").returncode == WRONG


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (reuse, "host WROTE a pinned buffer that an unfinished H2D copy still reads"),
        (reuse_registered, "host WROTE a pinned buffer that an unfinished H2D copy still reads"),
        (read_before_arrival, "host touched a pinned buffer that an unfinished D2H copy still writes"),
    ],
)
def test_the_guard_stops_the_host(program: Callable[[bool], None], message: str) -> None:
    done = fakecuda.call(program, False, mode="strict")
    assert done.crashed
    assert message in done.stderr


def test_a_device_address_is_out_of_bounds_for_the_host() -> None:
    done = fakecuda.call(touch_device_memory, False)
    assert done.crashed
    assert "host code touched a DEVICE address" in done.stderr


def test_a_missing_wait_is_a_race_whatever_the_timing() -> None:
    done = fakecuda.call(use_before_arrival, False, race=1)
    assert done.counters["races"] == 1
    assert "missing event wait" in done.stderr


def test_a_race_can_stop_the_process() -> None:
    done = fakecuda.call(use_before_arrival, False, race=2)
    assert done.crashed
    assert "missing event wait" in done.stderr


def test_an_early_free_is_reported() -> None:
    done = fakecuda.call(free_early, False, mode="strict")
    assert done.counters["frees_in_flight"] == 1
    assert "free in flight: cudaFreeHost" in done.stderr


def poisoned() -> None:
    cuda.use()
    assert cuda.read(cuda.alloc(MIB), MIB) == b"\xdb" * MIB
    assert cuda.Pinned(MIB).bytes == b"\xcb" * MIB


def test_new_memory_is_poisoned() -> None:
    fakecuda.call(poisoned, mode="strict").check()


def read_into_guarded() -> None:
    """The kernel does not fault on a guarded buffer: the system call fails."""
    cuda.use()
    on, to, source = cuda.stream(), cuda.alloc(MIB), cuda.Pinned(MIB)
    zeros = os.open("/dev/zero", os.O_RDONLY)
    cuda.to_device(to, source.at, MIB, on)
    try:
        os.readv(zeros, [source.view])
        raise AssertionError("the read should have failed")
    except OSError as error:
        assert error.errno == errno.EFAULT
    cuda.synchronize(on)
    assert os.readv(zeros, [source.view]) == MIB


def test_a_system_call_into_a_guarded_buffer_fails() -> None:
    fakecuda.call(read_into_guarded, mode="strict", latency_us=100_000).check()
