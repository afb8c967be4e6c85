"""Loads as GPUs and allocators make them hard: functions for a process each, which compare every byte."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .child import CannotRunError
from .state import noise, require_same, small

ROUNDS = 6
GLOBAL = 0  # CU_STREAM_CAPTURE_MODE_GLOBAL: what other threads may not do meanwhile fails, too
NOT_SUPPORTED = 801
BUSY = {
    "FLASHPACK_READ_CHUNK_BYTES": "262144",
    "FLASHPACK_READ_THREADS": "4",
    "FLASHPACK_NO_THREAD_CLAMP": "1",
}


@dataclass(frozen=True)
class Check:
    """A program, which may return notes, and the environment that it needs."""

    name: str
    program: Callable[..., list[str] | None]
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 240


def saved(folder: str, size: int) -> tuple[Path, dict[str, Tensor]]:
    """A new file, and what it holds."""
    import flashpack

    path, tensors = Path(folder, f"check-{os.getpid()}.flashpack"), small(size)
    flashpack.save_file(tensors, path)
    return path, tensors


def load(path: Path, device: str) -> dict[str, Tensor]:
    import flashpack

    return dict(flashpack.load_file(path, device))


def default_stream(folder: str, device: str, size: int) -> None:
    """All of it and a part of it, read past the page cache and through it; saved from the device again."""
    import flashpack

    path, want = saved(folder, size)
    for direct in ("0", "1"):
        os.environ["FLASHPACK_DIRECT_IO"] = direct
        got = load(path, device)
        require_same(got, want)
        assert got["tied"].data_ptr() == got["floats"].data_ptr()
        part = flashpack.load_file(path, device, names=["halves", "none"], verify=True)
        require_same(part, {name: want[name] for name in part})
    flashpack.save_file(got, path)
    require_same(load(path, device), want)


def on_stream(stream: torch.cuda.Stream, folder: str, device: str, size: int) -> None:
    """Loads into memory that queued work still uses wait for that work, and later work waits for them."""
    path, want = saved(folder, size)
    junk = noise(size, 1).pin_memory()
    os.environ.update(BUSY)
    back: list[dict[str, Tensor]] = []
    with torch.cuda.stream(stream):
        for _ in range(ROUNDS):
            used = torch.empty(size, dtype=torch.uint8, device=device)
            for _ in range(4):
                used.copy_(junk, non_blocking=True)
            del used
            got = load(path, device)
            here = {name: torch.empty_like(tensor, device="cpu").pin_memory() for name, tensor in got.items()}
            for name, tensor in got.items():
                here[name].copy_(tensor, non_blocking=True)
            back.append(here)
            del got, tensor
    stream.synchronize()
    for here in back:
        require_same(here, want)


def own_stream(folder: str, device: str, size: int) -> None:
    on_stream(torch.cuda.Stream(device), folder, device, size)


def per_thread_stream(folder: str, device: str, size: int) -> None:
    """CUDA's cudaStreamPerThread is the handle 2: it is another stream in each thread that names it."""
    torch.zeros(1, device=device)
    on_stream(torch.cuda.ExternalStream(2, device), folder, device, size)


def green_stream(folder: str, device: str, size: int) -> None:
    """A stream of a green context, which holds a part of the GPU's processors."""
    torch.zeros(1, device=device)
    try:
        context = torch.cuda.GreenContext.create(num_sms=8, device_id=torch.device(device).index or 0)
        stream = context.Stream()
    except (AttributeError, RuntimeError) as error:
        raise CannotRunError(f"torch gives no green context: {first_line(error)}") from error
    on_stream(stream, folder, device, size)


def allocator(folder: str, device: str, size: int) -> None:
    """The allocator that the environment asks for is the one at work."""
    asked = os.environ["PYTORCH_CUDA_ALLOC_CONF"]
    default_stream(folder, device, size)
    on_stream(torch.cuda.Stream(device), folder, device, size)
    if "expandable" in asked:
        assert any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())
    else:
        assert torch.cuda.get_allocator_backend() == "cudaMallocAsync"


@contextmanager
def captured(device: str, notes: list[str]) -> Iterator[None]:
    """Captures a copy around the block, by the driver's own calls. After it the graph must copy."""
    source, target = torch.arange(1000.0).to(device), torch.zeros(1000).to(device)
    stream = torch.cuda.Stream(device)
    handle, graph, ready = ctypes.c_void_p(stream.cuda_stream), ctypes.c_void_p(), ctypes.c_void_p()
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        require("cuStreamBeginCapture_v2", handle, GLOBAL)
        try:
            target.copy_(source, non_blocking=True)
            yield
        finally:
            require("cuStreamEndCapture", handle, ctypes.byref(graph))
    status = driver("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
    if status == NOT_SUPPORTED:
        notes.append("CUDA runs no graphs here")
        return
    assert status == 0, f"cuGraphInstantiateWithFlags gives error {status}"
    require("cuGraphLaunch", ready, handle)
    stream.synchronize()
    require_same({"copied": target}, {"copied": source.cpu()})


def driver(name: str, *arguments: object) -> int:
    return int(getattr(ctypes.CDLL("libcuda.so.1"), name)(*arguments))


def require(name: str, *arguments: object) -> None:
    status = driver(name, *arguments)
    assert status == 0, f"{name} gives error {status}"


def capture_here(folder: str, device: str, size: int) -> list[str]:
    """A load into a graph is refused, and harms neither the graph nor later loads."""
    path, want = saved(folder, size)
    load(path, device)
    notes: list[str] = []
    with captured(device, notes):
        try:
            load(path, device)
        except Exception as error:  # noqa: BLE001 (whatever it is, it must name the reason)
            refusal = str(error)
        else:
            raise AssertionError("a load was captured into a graph")
    assert "captur" in refusal, refusal
    require_same(load(path, device), want)
    return notes


def capture_elsewhere(folder: str, device: str, size: int) -> list[str]:
    """A load while another thread captures goes on, and so does the capture."""
    path, want = saved(folder, size)
    load(path, device)  # torch keeps the memory, so that the next one allocates none
    begun, loaded = threading.Event(), threading.Event()
    notes: list[str] = []
    failures: list[BaseException] = []

    def capture() -> None:
        try:
            with captured(device, notes):
                begun.set()
                assert loaded.wait(60)
        except BaseException as error:  # noqa: BLE001 (handed to the other thread)
            failures.append(error)
        finally:
            begun.set()

    thread = threading.Thread(target=capture)
    thread.start()
    assert begun.wait(60)
    try:
        got = {} if failures else load(path, device)
    finally:
        loaded.set()
        thread.join()
    if failures:
        raise failures[0]
    require_same(got, want)
    return notes


def after_failure(folder: str, device: str, size: int) -> None:
    """A load that fails leaves staging, streams and memory as later loads need them."""
    import flashpack

    path, want = saved(folder, size)
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[size // 2] ^= 1
    os.environ.update(BUSY)
    for _ in range(ROUNDS):
        path.write_bytes(damaged)
        try:
            load(path, device)
        except flashpack.ChecksumError:
            pass
        else:
            raise AssertionError("damage was not found")
        path.write_bytes(sound)
        require_same(load(path, device), want)


def fork(folder: str, device: str, size: int) -> None:
    """A forked child loads to the CPU and is told why not to the GPU; its parent goes on."""
    path, want = saved(folder, size)
    require_same(load(path, device), want)
    child = os.fork()
    if not child:
        status = 1
        torch.set_num_threads(1)  # OpenMP's threads stayed with the parent
        try:
            require_same(load(path, "cpu"), want)
            try:
                load(path, device)
            except RuntimeError as error:
                status = 0 if "fork" in str(error) or "initialization" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"
    require_same(load(path, device), want)


# What is queued and what is read ahead when this ends, nobody waits for.
ENDS = """
import sys, torch, flashpack
path, device = sys.argv[1:]
there = flashpack.load_file(path, device)
kept = flashpack.load_file(path)
"""


def exit_during_read_ahead(folder: str, device: str, size: int) -> None:
    """A process that ends while a mapped file is read ahead, with copies queued, ends well."""
    path, want = saved(folder, 4 * size)
    for _ in range(3):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        subprocess.run([sys.executable, "-c", ENDS, path, device], check=True, timeout=120)
    require_same(load(path, device), want)


def second_device(folder: str, device: str, size: int) -> None:
    """The second GPU, alone and then beside the first."""
    if torch.cuda.device_count() < 2:
        raise CannotRunError("there is one GPU")
    for where in ("cuda:1", device, "cuda:1"):
        default_stream(folder, where, size)


def engine_programs(folder: str, device: str, size: int) -> None:  # noqa: ARG001 (their files have their own sizes)
    """The programs that `tests/python/cuda` runs on the emulator."""
    try:
        import test_engine
    except ImportError as error:
        raise CannotRunError(f"they need pytest: {first_line(error)}") from error
    test_engine.loads(folder, device)
    test_engine.from_threads(folder, device)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def about(device: str) -> dict[str, Any]:
    """The GPU, its driver and the package under test. Raises CannotRunError if there is no GPU."""
    import flashpack

    if not torch.cuda.is_available():
        raise CannotRunError(f"torch {torch.__version__} finds no GPU")
    torch.zeros(1, device=device)
    properties = torch.cuda.get_device_properties(device)
    bus = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    return {
        "gpu": properties.name,
        "gpu_memory": properties.total_memory,
        "gpus": torch.cuda.device_count(),
        "bus": bus,
        "emulated": hasattr(ctypes.CDLL("libcuda.so.1"), "fakecuda_counter"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "flashpack": flashpack.__version__,
        "flashpack_file": flashpack.__file__,
    }


CHECKS = [
    Check("the engine's programs", engine_programs, timeout=400),
    Check("default stream", default_stream),
    Check("own stream", own_stream),
    Check("per-thread stream", per_thread_stream),
    Check("green context's stream", green_stream),
    Check("capture in this thread", capture_here),
    Check("capture in another thread", capture_elsewhere),
    Check("expandable segments", allocator, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
    Check("cudaMallocAsync", allocator, {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}),
    Check("one connection", own_stream, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}),
    Check("failed load, then another", after_failure),
    Check("fork", fork),
    Check("exit during read-ahead", exit_during_read_ahead),
    Check("second GPU", second_device),
]
