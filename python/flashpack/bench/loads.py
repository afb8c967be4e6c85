"""The loads that `flashpack.bench` times, the check of their bytes, and the rate of a link. Imports torch."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from .._core import native
from .._core.paths import is_url
from .._inspect.listing import Listing
from .._load.load import load_file

_PAGE_BYTES = 4096
_LINK_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """A way to load, and the names of the raw limits of which the lowest bounds it."""

    name: str
    load: Callable[[], object]
    bounds: tuple[str, ...]


def cases(path: str, device: str | None, checksums: str | None) -> Iterator[Case]:
    """The ways to load that are worth comparing; `device` adds one, `checksums` those that verify."""
    verified = "verified" if checksums else "unverified"
    if not is_url(path):
        yield Case("mapped, all touched", lambda: touch(load_file(path)), ("touching a mapping", "disk"))
    host = ("page cache", "disk", "network")
    yield Case("eager, unverified", lambda: load_file(path, eager=True, verify=False), host)
    if checksums:
        yield Case("eager, verified", lambda: load_file(path, eager=True), host)
    if device is not None:
        bounds = ("page cache, same memory", "disk", "network", "device link")
        yield Case(f"to {device}, {verified}", lambda: _to_device(path, device), bounds)


def _to_device(path: str, device: str) -> dict[str, Tensor]:
    loaded = load_file(path, device)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return loaded


def touch(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Look at every page of the tensors' memory."""
    for tensor in tensors.values():
        _flat(tensor)[::_PAGE_BYTES].sum(dtype=torch.int64)
    return tensors


def touch_mapping(path: str, size: int) -> Tensor:
    """Map the file's first `size` bytes, privately, and look at every page."""
    with Path(path).open("rb") as file:
        mapping = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(mapping, dtype=torch.uint8)[::_PAGE_BYTES].sum(dtype=torch.int64)


def drop_from_cache(paths: Iterable[str]) -> None:
    """Ask the kernel to forget its pages of the files, after those that are dirty have been written."""
    for path in paths:
        with Path(path).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def link_rate(device: str) -> float:
    """Bytes per second of one large copy from pinned memory to `device`."""
    source = torch.ones(_LINK_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=device)
    for _ in range(2):  # the first one for what starts then
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
    return _LINK_BYTES / (time.perf_counter() - started)


def check_bytes(path: str, device: str | None, listing: Listing) -> None:
    """Compare what every case loads with the bytes of the file, read apart, or of a copy.

    The copy is of an object, or of what a compressed file holds.

    Raises RuntimeError that names case and tensor where they differ.
    """
    with ExitStack() as stack:
        copies = [file.path for file in listing.files]
        compressed = any(file.compressed for file in listing.files)
        if is_url(path) or compressed:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flashpack-"))
            copies = [str(Path(folder, "copy.safetensors" if compressed else "copy"))]
            native.call("revert" if compressed else "copy", path=path, destination=copies[0])
            listing = replace(Listing.read(copies[0]), path=listing.path, checksums=listing.checksums)
        files = [stack.enter_context(Path(copy).open("rb")) for copy in copies]
        for case in cases(path, device, listing.checksums):
            _compare(f"{listing.path}: {case.name}", case.load(), listing, files)


def _compare(shown: str, loaded: object, listing: Listing, files: list[BufferedReader]) -> None:
    if not isinstance(loaded, dict) or loaded.keys() != {name for name, *_ in listing.tensors}:
        raise RuntimeError(f"{shown}: other tensors were loaded than the file lists")
    for name, kind, file, offset in listing.tensors:
        size = listing.kinds[kind].bytes
        files[file].seek(offset)
        expected = bytearray(files[file].read(size))
        got = _flat(loaded[name].cpu())
        if not torch.equal(got, torch.frombuffer(expected, dtype=torch.uint8) if size else got[:0]):
            raise RuntimeError(f"{shown}: {name!r} has other bytes than the file")


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
