"""The emulator knows contexts, per-thread streams and captures, and gives each device a fate of its own."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

import cuda_driver as cuda
import fakecuda
import pytest
from cuda_driver import GLOBAL, MIB, RELAXED, THREAD_LOCAL

pytestmark = pytest.mark.usefixtures("emulator")

T = TypeVar("T")
PER_THREAD = 2
ILLEGAL_STATE, UNSUPPORTED, INVALIDATED, MERGE, UNMATCHED, UNJOINED = 401, 900, 901, 902, 903, 904
ISOLATION, IMPLICIT, CAPTURED_EVENT, WRONG_THREAD, ILLEGAL_ADDRESS = 905, 906, 907, 908, 700


def elsewhere(work: Callable[[], T]) -> T:
    """What `work` returns in another thread, in the same context."""
    results: list[T] = []

    def run() -> None:
        cuda.use()
        results.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def malloc() -> int:
    return cuda.status("cuMemAlloc_v2", ctypes.byref(ctypes.c_void_p()), MIB)


def own_streams() -> None:
    cuda.use()
    to, source = cuda.alloc(4 * MIB), cuda.Pinned(4 * MIB)
    with fakecuda.knobs(latency_us=200_000):
        cuda.to_device(to, source.at, MIB, PER_THREAD)
        assert cuda.status("cuStreamQuery", PER_THREAD) == cuda.NOT_READY
        assert elsewhere(lambda: cuda.status("cuStreamQuery", PER_THREAD)) == 0
    with cuda.green_context():
        assert cuda.status("cuStreamQuery", 0) == 0
        with fakecuda.knobs(latency_us=200_000):
            cuda.to_device(to, source.at, MIB, 0)
            assert cuda.status("cuStreamQuery", 0) == cuda.NOT_READY
            assert elsewhere(lambda: cuda.status("cuStreamQuery", 0)) == 0
            assert cuda.integer("cuCtxGetDevice") == 0
    cuda.synchronize_all()


def test_default_streams_belong_to_threads_and_contexts() -> None:
    fakecuda.call(own_streams).check()


def unsafe_calls() -> None:
    """Which thread a capture of which mode keeps from calls that may be unsafe, and what becomes of it."""
    cuda.use()
    on = cuda.stream()
    for mode, here, there in [
        (GLOBAL, UNSUPPORTED, UNSUPPORTED),
        (THREAD_LOCAL, UNSUPPORTED, 0),
        (RELAXED, 0, 0),
    ]:
        for work, refused in ((malloc, here), (lambda: elsewhere(malloc), there)):
            cuda.begin_capture(on, mode)
            assert cuda.is_capturing(on) == 1
            assert work() == refused, mode
            assert cuda.is_capturing(on) == (2 if refused else 1)
            assert cuda.end_capture(on) == (INVALIDATED if refused else 0)
    cuda.begin_capture(on)
    for other in (THREAD_LOCAL, RELAXED):  # of the thread that calls
        assert elsewhere(lambda mode=other: (cuda.exchange_capture_mode(mode), malloc())) == (GLOBAL, 0)
    assert cuda.exchange_capture_mode(RELAXED) == GLOBAL
    assert malloc() == 0
    assert cuda.exchange_capture_mode(GLOBAL) == RELAXED
    assert cuda.end_capture(on) == 0
    assert malloc() == 0


def test_calls_that_captures_forbid() -> None:
    done = fakecuda.call(unsafe_calls).check()
    assert done.counters["captures"] == 7
    assert done.counters["captures_invalidated"] == 3


def captured_work() -> None:
    """What is captured does not run; events carry captures from stream to stream."""
    cuda.use()
    on, other, third = cuda.stream(), cuda.stream(), cuda.stream()
    begun, joined, outside = cuda.event(), cuda.event(), cuda.event()
    to, source = cuda.alloc(MIB), cuda.Pinned(MIB)
    cuda.begin_capture(on)
    assert cuda.status("cuStreamBeginCapture_v2", on, GLOBAL) == ILLEGAL_STATE
    cuda.record(begun, on)
    cuda.wait(other, begun)
    assert cuda.is_capturing(other) == 1
    cuda.to_device(to, source.at, MIB, other)
    assert cuda.status("cuStreamEndCapture", third, ctypes.byref(ctypes.c_void_p())) == ILLEGAL_STATE
    cuda.record(joined, other)
    cuda.wait(on, joined)
    assert cuda.end_capture(on) == 0
    assert cuda.is_capturing(other) == 0
    assert fakecuda.counter("captured_operations") == 1
    assert not fakecuda.counter("h2d_busy_us")
    mistakes: list[tuple[Callable[[], int], int]] = [
        (lambda: cuda.status("cuEventQuery", begun), UNSUPPORTED),
        (lambda: cuda.status("cuStreamSynchronize", on), UNSUPPORTED),
        (lambda: cuda.status("cuStreamWaitEvent", on, outside, 0), ISOLATION),
        (lambda: elsewhere(lambda: cuda.end_capture(on)), WRONG_THREAD),
    ]
    cuda.record(outside, third)
    for mistake, error in mistakes:
        cuda.begin_capture(on)
        cuda.record(begun, on)
        assert mistake() == error
        assert cuda.end_capture(on) == INVALIDATED
    relaxed_mistakes(on, other, third, begun)


def relaxed_mistakes(on: int, other: int, third: int, begun: int) -> None:
    """Those of a thread that may make unsafe calls."""
    cuda.exchange_capture_mode(RELAXED)
    cuda.begin_capture(on)
    cuda.record(begun, on)
    assert cuda.status("cuEventSynchronize", begun) == CAPTURED_EVENT
    assert cuda.end_capture(on) == INVALIDATED
    cuda.begin_capture(on)
    cuda.record(begun, on)
    cuda.wait(other, begun)
    assert cuda.end_capture(other) == UNMATCHED
    assert cuda.end_capture(on) == INVALIDATED
    cuda.begin_capture(on)
    cuda.record(begun, on)
    cuda.wait(other, begun)
    assert cuda.end_capture(on) == UNJOINED
    cuda.begin_capture(on)
    cuda.begin_capture(third)
    cuda.record(begun, on)
    assert cuda.status("cuStreamWaitEvent", third, begun, 0) == MERGE
    assert (cuda.end_capture(on), cuda.end_capture(third)) == (INVALIDATED, INVALIDATED)
    blocking = cuda.stream(0)
    cuda.record(cuda.event(), 0)
    cuda.begin_capture(blocking)
    assert cuda.status("cuStreamIsCapturing", 0, ctypes.byref(ctypes.c_int())) == IMPLICIT
    assert cuda.is_capturing(blocking) == 1
    assert cuda.status("cuEventRecord", begun, 0) == IMPLICIT
    assert cuda.end_capture(blocking) == INVALIDATED


def test_what_a_capture_holds_and_what_ends_it() -> None:
    fakecuda.call(captured_work).check()


def two_fates() -> None:
    """A device that is lost leaves the other alone."""
    cuda.use(1)
    on, to, source = cuda.stream(), cuda.alloc(MIB), cuda.Pinned(MIB)
    cuda.use(0)
    lost = cuda.stream()
    with fakecuda.faults("cuMemcpyHtoDAsync:1:illegal:late"):
        cuda.to_device(cuda.alloc(MIB), source.at, MIB, lost)
        assert cuda.status("cuStreamSynchronize", lost) == ILLEGAL_ADDRESS
    assert malloc() == ILLEGAL_ADDRESS
    cuda.use(1)
    assert malloc() == 0
    cuda.to_device(to, source.at, MIB, on)
    cuda.synchronize(on)
    cuda.use(0)
    assert cuda.status("cuCtxSynchronize") == ILLEGAL_ADDRESS


def test_each_device_has_its_own_fate() -> None:
    fakecuda.call(two_fates, devices=2).check()
