"""The emulator's driver API keeps CUDA's rules: what arrives, in what order, and what is refused.

A test here starts the function above it in a process of its own, under the emulator.
"""

from __future__ import annotations

import ctypes
import os
import threading

import cuda_driver as cuda
import fakecuda
import pytest
from cuda_driver import MIB

pytestmark = pytest.mark.usefixtures("emulator")

INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, NO_DEVICE, INVALID_DEVICE = 1, 2, 3, 100, 101
INVALID_CONTEXT, INVALID_HANDLE, ILLEGAL_ADDRESS, NOT_PERMITTED, NOT_SUPPORTED = 201, 400, 700, 800, 801
ALREADY_REGISTERED, NOT_REGISTERED = 712, 713


def round_trip() -> None:
    """Up on one stream, across on a second, down on a third, ordered by events alone."""
    for device in range(cuda.integer("cuDeviceGetCount")):
        cuda.use(device)
        up, across, down = cuda.stream(), cuda.stream(), cuda.stream()
        there, copied = cuda.event(), cuda.event(2)
        source, back = cuda.Pinned(3 * MIB), cuda.Pinned(3 * MIB)
        pattern = os.urandom(3 * MIB)
        source.view[:] = pattern
        first, second = cuda.alloc(3 * MIB), cuda.alloc(3 * MIB)
        cuda.to_device(first, source.at, 3 * MIB, up)
        cuda.record(there, up)
        cuda.wait(across, there)
        cuda.on_device(second, first, 3 * MIB, across)
        cuda.record(copied, across)
        cuda.wait(down, copied)
        cuda.to_host(back.at, second + 100, 3 * MIB - 200, down)
        cuda.synchronize(down)
        assert cuda.is_done(there)
        assert back.bytes[: 3 * MIB - 200] == pattern[100:-100]


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("mode", fakecuda.MODES)
def test_bytes_arrive_in_every_mode(mode: str, devices: int) -> None:
    done = fakecuda.call(round_trip, mode=mode, devices=devices).check()
    assert done.counters["async_copies"] == 3 * devices
    assert not done.counters["races"] + done.counters["frees_in_flight"] + done.counters["pageable_copies"]


def copies_do_not_wait() -> None:
    cuda.use()
    on, queued, to, source = cuda.stream(), cuda.event(), cuda.alloc(MIB), cuda.Pinned(MIB)
    cuda.to_device(to, source.at, MIB, on)
    cuda.record(queued, on)
    assert not cuda.is_done(queued)
    assert cuda.status("cuStreamQuery", on) == cuda.NOT_READY
    cuda.do("cuEventSynchronize", queued)
    assert cuda.is_done(queued)
    assert cuda.status("cuStreamQuery", on) == 0


def test_an_asynchronous_copy_is_not_done_when_the_call_returns() -> None:
    fakecuda.call(copies_do_not_wait, latency_us=100_000).check()


def devices_and_contexts() -> None:
    cuda.do("cuInit", 0)
    assert cuda.integer("cuDeviceGetCount") == 2
    assert cuda.status("cuDeviceGet", ctypes.byref(ctypes.c_int()), 2) == INVALID_DEVICE
    size = ctypes.c_size_t()
    assert cuda.status("cuMemAlloc_v2", ctypes.byref(size), MIB) == INVALID_CONTEXT
    assert cuda.status("cuCtxPopCurrent_v2", None) == INVALID_CONTEXT
    flags, active = ctypes.c_uint(), ctypes.c_int()
    context = cuda.use(1)
    for device in (0, 1):
        cuda.do("cuDevicePrimaryCtxGetState", device, ctypes.byref(flags), ctypes.byref(active))
        assert active.value == device  # nothing was made on the other one
    cuda.do("cuCtxPushCurrent_v2", context)
    cuda.do("cuCtxPopCurrent_v2", None)
    assert cuda.integer("cuCtxGetDevice") == 1
    cuda.do("cuMemGetInfo_v2", ctypes.byref(size), ctypes.byref(size))
    assert size.value == 8 << 30


def test_devices_and_contexts() -> None:
    fakecuda.call(devices_and_contexts, devices=2).check()


def context_belongs_to_the_thread() -> None:
    cuda.use()
    pinned = cuda.Pinned(MIB)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cuda.status("cuMemFreeHost", pinned.at)))
    thread.start()
    thread.join()
    assert codes == [INVALID_CONTEXT]
    pinned.free()


def test_a_new_thread_has_no_context() -> None:
    fakecuda.call(context_belongs_to_the_thread).check()


def no_device(hidden: bool) -> None:
    if hidden:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    assert cuda.status("cuInit", 0) == NO_DEVICE


@pytest.mark.parametrize("devices", [0, 2], ids=["none", "hidden"])
def test_no_device(devices: int) -> None:
    fakecuda.call(no_device, devices > 0, devices=devices).check()


def events_belong_to_a_device() -> None:
    cuda.use(0)
    first, at = cuda.stream(), cuda.event()
    cuda.use(1)
    second = cuda.stream()
    assert cuda.status("cuEventRecord", at, second) == INVALID_HANDLE
    cuda.record(at, first)
    cuda.wait(second, at)  # waiting across devices is allowed
    cuda.synchronize(second)


def test_events_belong_to_a_device() -> None:
    done = fakecuda.call(events_belong_to_a_device, devices=2).check()
    assert "an event of device 0 recorded on a stream of device 1" in done.stderr


def handles() -> None:
    cuda.use()
    on, at = cuda.stream(), cuda.event()
    cuda.do("cuStreamDestroy_v2", on)
    cuda.do("cuEventDestroy_v2", at)
    assert cuda.status("cuStreamSynchronize", on) == INVALID_HANDLE
    assert cuda.status("cuEventQuery", at) == INVALID_HANDLE
    assert cuda.status("cuStreamDestroy_v2", on) == INVALID_HANDLE


def test_destroyed_handles_are_refused() -> None:
    counters = fakecuda.call(handles).check().counters
    assert counters["streams_destroyed"] == counters["events_destroyed"] == 1


def pointers() -> None:
    cuda.use(1)
    device, pinned, own = cuda.alloc(MIB), cuda.Pinned(MIB), ctypes.create_string_buffer(MIB)
    memory_type, ordinal = 2, 9  # CU_POINTER_ATTRIBUTE_*
    assert cuda.integer("cuPointerGetAttribute", memory_type, device + 5) == 2
    assert cuda.integer("cuPointerGetAttribute", ordinal, device) == 1
    assert cuda.integer("cuPointerGetAttribute", memory_type, pinned.at) == 1
    unknown = ctypes.addressof(own)
    value = ctypes.c_int()
    assert cuda.status("cuPointerGetAttribute", ctypes.byref(value), ordinal, unknown) == INVALID_VALUE
    for address, want in ((device, 1), (unknown, -2)):
        out = (ctypes.c_void_p * 1)(ctypes.addressof(value))
        cuda.do("cuPointerGetAttributes", 1, (ctypes.c_int * 1)(ordinal), out, address)
        assert value.value == want


def test_pointer_attributes() -> None:
    fakecuda.call(pointers, devices=2).check()


def registering() -> None:
    cuda.use()
    own, to, on = ctypes.create_string_buffer(b"\x05" * MIB), cuda.alloc(MIB), cuda.stream()
    at = ctypes.addressof(own)
    cuda.do("cuMemHostRegister_v2", at, MIB, 0)
    assert cuda.status("cuMemHostRegister_v2", at + 4096, 4096, 0) == ALREADY_REGISTERED
    assert fakecuda.counter("pinned_bytes") == MIB
    cuda.to_device(to, at, MIB, on)
    cuda.synchronize(on)
    cuda.do("cuMemHostUnregister", at)
    assert cuda.status("cuMemHostUnregister", at) == NOT_REGISTERED
    assert cuda.read(to, MIB) == b"\x05" * MIB
    assert fakecuda.counter("pinned_bytes") == 0


@pytest.mark.parametrize("mode", ["plain", "strict"])
def test_registered_memory_is_pinned(mode: str) -> None:
    assert fakecuda.call(registering, mode=mode).check().counters["async_copies"] == 1


def outside(size: int, freed: bool) -> None:
    cuda.use()
    to, source = cuda.alloc(MIB), cuda.Pinned(2 * MIB)
    if freed:
        cuda.do("cuMemFree_v2", to)
    assert cuda.status("cuMemcpyHtoDAsync_v2", to, source.at, size, cuda.stream())
    assert cuda.status("cuCtxSynchronize") == ILLEGAL_ADDRESS  # the context is dead


@pytest.mark.parametrize(("size", "freed"), [(MIB + 1, False), (MIB, True)], ids=["past the end", "freed"])
def test_a_copy_outside_of_live_memory_kills_the_context(size: int, freed: bool) -> None:
    assert "context is now dead" in fakecuda.call(outside, size, freed).check().stderr


def out_of_memory() -> None:
    cuda.use()
    first = cuda.alloc(60 * MIB)
    assert cuda.status("cuMemAlloc_v2", ctypes.byref(ctypes.c_void_p()), 60 * MIB) == OUT_OF_MEMORY
    cuda.do("cuMemFree_v2", first)
    assert cuda.alloc(60 * MIB) > first  # bytes are used again, addresses never


def test_device_memory_ends() -> None:
    fakecuda.call(out_of_memory, mem="100Mi").check()


def forbidden_places() -> None:
    cuda.use()
    codes: list[int] = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
        lambda _: codes.append(cuda.status("cuCtxSynchronize"))
    )
    on = cuda.stream()
    cuda.do("cuLaunchHostFunc", on, callback, None)
    cuda.synchronize(on)
    assert codes == [NOT_PERMITTED]
    child = os.fork()
    if not child:
        os._exit(cuda.status("cuInit", 0))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == NOT_INITIALIZED


def test_no_cuda_in_host_functions_and_forked_children() -> None:
    fakecuda.call(forbidden_places).check()


def not_emulated() -> None:
    cuda.use()
    assert cuda.status("cuGraphCreate", None, 0) == NOT_SUPPORTED


def test_what_is_not_emulated_fails_loudly() -> None:
    done = fakecuda.call(not_emulated, verbose=1).check()
    assert done.counters["stub_calls"] == 1
    assert "cuGraphCreate is not emulated" in done.stderr


def entry_points() -> None:
    for name in ("cuMemcpyHtoDAsync", "cuMemHostRegister", "cuEventDestroy", "cuCtxGetDevice"):
        found = ctypes.c_void_p()
        cuda.do("cuGetProcAddress_v2", name.encode(), ctypes.byref(found), 12080, 0, None)
        assert found.value
    text = ctypes.c_char_p()
    cuda.do("cuGetErrorName", 2, ctypes.byref(text))
    assert text.value == b"CUDA_ERROR_OUT_OF_MEMORY"


def test_entry_points_by_name() -> None:
    fakecuda.call(entry_points).check()
