"""The CUDA driver API in Python, without torch: what the loader calls, one call at a time."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_char, c_float, c_int, c_size_t, c_void_p

MIB = 1 << 20
NOT_READY = 600


@functools.cache
def _lib() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


class CudaError(RuntimeError):
    """A driver call that did not return success."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} failed: {code}")
        self.code = code


def status(name: str, *args: object) -> int:
    """The status of a driver call. Integers are passed as 64 bits wide."""
    code: int = getattr(_lib(), name)(*(c_size_t(a) if isinstance(a, int) else a for a in args))
    return code


def do(name: str, *args: object) -> None:
    """A driver call that must succeed."""
    if code := status(name, *args):
        raise CudaError(name, code)


def _out(name: str, *args: object) -> int:
    handle = c_void_p()
    do(name, byref(handle), *args)
    return handle.value or 0


def use(device: int = 0) -> int:
    """Makes the device's primary context current in this thread."""
    do("cuInit", 0)
    context = _out("cuDevicePrimaryCtxRetain", device)
    do("cuCtxSetCurrent", context)
    return context


@contextmanager
def green_context(device: int = 0) -> Iterator[int]:
    """A context of part of the device's processors, current in this thread for the block."""
    context = _out("cuCtxFromGreenCtx", _out("cuGreenCtxCreate", 0, device, 1))
    do("cuCtxPushCurrent_v2", context)
    try:
        yield context
    finally:
        do("cuCtxPopCurrent_v2", byref(c_void_p()))


GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2  # modes of captures


def begin_capture(on: int, mode: int = GLOBAL) -> None:
    do("cuStreamBeginCapture_v2", on, mode)


def end_capture(on: int) -> int:
    """The status of the end of a capture, whose graph is dropped."""
    graph = c_void_p()
    code = status("cuStreamEndCapture", on, byref(graph))
    assert bool(graph.value) == (code == 0)
    return code


def is_capturing(on: int) -> int:
    """0: it is not captured; 1: it is; 2: it is, and that has failed."""
    value = c_int()
    do("cuStreamIsCapturing", on, byref(value))
    return value.value


def exchange_capture_mode(mode: int) -> int:
    """Sets this thread's mode; returns the one before."""
    value = c_int(mode)
    do("cuThreadExchangeStreamCaptureMode", byref(value))
    return value.value


def alloc(size: int) -> int:
    return _out("cuMemAlloc_v2", size)


class Pinned:
    """Page-locked memory that the driver allocates."""

    def __init__(self, size: int) -> None:
        self.at, self.size = _out("cuMemHostAlloc", size, 0) if size else 0, size

    @property
    def view(self) -> ctypes.Array[c_char]:
        return (c_char * self.size).from_address(self.at)

    def fill(self, byte: int) -> None:
        ctypes.memset(self.at, byte, self.size)

    @property
    def bytes(self) -> bytes:
        return ctypes.string_at(self.at, self.size)

    def free(self) -> None:
        do("cuMemFreeHost", self.at)


def stream(flags: int = 1) -> int:
    """A stream; by default one that the default stream does not wait for."""
    return _out("cuStreamCreate", flags)


def event(flags: int = 0) -> int:
    return _out("cuEventCreate", flags)


def record(at: int, on: int) -> None:
    do("cuEventRecord", at, on)


def wait(on: int, until: int) -> None:
    do("cuStreamWaitEvent", on, until, 0)


def to_device(to: int, source: int, size: int, on: int) -> None:
    do("cuMemcpyHtoDAsync_v2", to, source, size, on)


def to_host(to: int, source: int, size: int, on: int) -> None:
    do("cuMemcpyDtoHAsync_v2", to, source, size, on)


def on_device(to: int, source: int, size: int, on: int) -> None:
    do("cuMemcpyDtoDAsync_v2", to, source, size, on)


def synchronize(on: int) -> None:
    do("cuStreamSynchronize", on)


def synchronize_all() -> None:
    do("cuCtxSynchronize")


def is_done(at: int) -> bool:
    code = status("cuEventQuery", at)
    if code not in (0, NOT_READY):
        raise CudaError("cuEventQuery", code)
    return code == 0


def elapsed(first: int, last: int) -> float:
    """Milliseconds between two events that are done."""
    value = c_float()
    do("cuEventElapsedTime", byref(value), first, last)
    return value.value


def read(source: int, size: int) -> bytes:
    """What the device memory holds once all queued work is done."""
    synchronize_all()
    buffer = (c_char * size)()
    do("cuMemcpyDtoH_v2", buffer, source, size)
    return buffer.raw


def integer(name: str, *args: object) -> int:
    value = c_int()
    do(name, byref(value), *args)
    return value.value
