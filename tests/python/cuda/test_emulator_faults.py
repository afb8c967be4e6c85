"""Injected faults hit the call that they name and no other, and the counters count."""

from __future__ import annotations

import ctypes

import cuda_driver as cuda
import fakecuda
import pytest
from cuda_driver import MIB

pytestmark = pytest.mark.usefixtures("emulator")

OUT_OF_MEMORY, ILLEGAL_ADDRESS, NOT_PERMITTED = 2, 700, 800


def pin() -> int:
    """The status of one cuMemHostAlloc."""
    return cuda.status("cuMemHostAlloc", ctypes.byref(ctypes.c_void_p()), MIB, 0)


def faults_from_the_environment() -> None:
    cuda.use()
    assert [pin() for _ in range(4)] == [0, OUT_OF_MEMORY, 0, 0]
    own = ctypes.create_string_buffer(MIB)
    for _ in range(3):
        assert cuda.status("cuMemHostRegister_v2", ctypes.addressof(own), MIB, 0) == NOT_PERMITTED


def test_faults_from_the_environment() -> None:
    rules = "cuMemHostAlloc:2,cuMemHostRegister:1+:notpermitted"
    done = fakecuda.call(faults_from_the_environment, fail=rules).check()
    assert done.counters["faults_injected"] == 4
    assert done.counters["pinned_bytes"] == 3 * MIB
    assert "FAULT injected into cuMemHostAlloc: out of memory" in done.stderr


def faults_for_a_block() -> None:
    cuda.use()
    on, to, source = cuda.stream(), cuda.alloc(MIB), cuda.Pinned(MIB)
    with fakecuda.faults("cuMemAlloc:1,cuMemcpyHtoDAsync:2:invalid"):
        for name, expected in (("first", 0), ("second", 1), ("third", 0)):
            assert cuda.status("cuMemcpyHtoDAsync_v2", to, source.at, MIB, on) == expected, name
        assert cuda.status("cuMemAlloc_v2", ctypes.byref(ctypes.c_void_p()), MIB) == OUT_OF_MEMORY
    cuda.alloc(MIB)
    cuda.synchronize(on)
    with pytest.raises(ValueError, match="does not understand"), fakecuda.faults("cuMemAlloc"):
        pass


def test_faults_for_a_block() -> None:
    fakecuda.call(faults_for_a_block).check()


def late_fault() -> None:
    cuda.use()
    on, to, source = cuda.stream(), cuda.alloc(MIB), cuda.Pinned(MIB)
    with fakecuda.faults("cuMemcpyHtoDAsync:2:illegal:late"):
        cuda.to_device(to, source.at, MIB, on)
        cuda.to_device(to, source.at, MIB, on)  # succeeds: the device has not got there yet
        assert cuda.status("cuStreamSynchronize", on) == ILLEGAL_ADDRESS
    assert pin() == ILLEGAL_ADDRESS  # for ever


@pytest.mark.parametrize("mode", ["plain", "lazy:1"])
def test_a_late_fault_shows_at_a_later_call(mode: str) -> None:
    fakecuda.call(late_fault, mode=mode, latency_us=50_000).check()


def counted() -> None:
    cuda.use()
    on, to = cuda.stream(), cuda.alloc(2 * MIB)
    first, second = cuda.Pinned(MIB), cuda.Pinned(2 * MIB)
    pageable = ctypes.create_string_buffer(MIB)
    with fakecuda.counting() as counters:
        first.free()
        cuda.to_device(to, second.at, 2 * MIB, on)
        cuda.to_device(to, ctypes.addressof(pageable), MIB, on)
        cuda.synchronize(on)
        cuda.Pinned(4 * MIB).free()
    assert counters["h2d_copies"] == counters["calls.cuMemcpyHtoDAsync_v2"] == 2
    assert counters["h2d_bytes"] == 3 * MIB
    assert counters["async_copies"] == counters["pageable_copies"] == 1
    assert counters["pageable_bytes"] == MIB
    assert counters["pinned_bytes"] == 2 * MIB  # now
    assert counters["pinned_bytes_peak"] == 6 * MIB
    assert counters["pinned_allocs"] == 1
    assert counters["pinned_frees"] == 2
    assert counters["stream_syncs"] == 1
    assert fakecuda.counter("h2d_bytes") == 3 * MIB
    fakecuda.reset()
    assert fakecuda.counter("h2d_bytes") == 0
    assert fakecuda.counter("pinned_bytes_peak") == 2 * MIB


def test_counters() -> None:
    fakecuda.call(counted).check()


def small_pageable() -> None:
    """CUDA stages small pageable sources: the call returns, and the source may change."""
    cuda.use()
    on, to = cuda.stream(), cuda.alloc(4096)
    source = ctypes.create_string_buffer(b"\1" * 4096, 4096)
    cuda.to_device(to, ctypes.addressof(source), 4096, on)
    assert cuda.status("cuStreamQuery", on) == cuda.NOT_READY
    ctypes.memset(source, 2, 4096)
    assert cuda.read(to, 4096) == b"\1" * 4096


def test_small_pageable_sources_are_staged() -> None:
    counters = fakecuda.call(small_pageable, latency_us=50_000).check().counters
    assert counters["async_copies"] == 0


def knobs_change() -> None:
    cuda.use()
    with fakecuda.knobs(bw_h2d=1e9, latency_us=5):
        assert fakecuda.get_knob("bw_h2d") == 1e9
    assert fakecuda.get_knob("bw_h2d") == 25e9
    assert fakecuda.get_knob("data") == 1
    with pytest.raises(ValueError, match="fixed at start"):
        fakecuda.set_knob("guard", 1)
    with pytest.raises(ValueError, match="no knob"):
        fakecuda.get_knob("speed")


def test_knobs() -> None:
    done = fakecuda.call(knobs_change, bw_h2d="25g", jitter_us="many").check()
    assert "FAKECUDA_JITTER_US=many is not understood, ignored" in done.stderr
