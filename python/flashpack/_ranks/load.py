"""Loads by all ranks of torch.distributed together: the file is read once, whatever their number."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._core import native, ops
from .._core.constants import DEFAULT_CHUNK_BYTES, DEFAULT_NUM_STREAMS
from .._core.errors import FlashPackError
from .._core.paths import has_url
from .._core.progress import Silent
from .._files.opened import OpenModel
from .._files.sources import ModelPath, model_path, resolved_path, shown_path
from .._load.load import Device, as_device, described
from .._load.options import LoadOptions, resolve_shard_strategy
from .._load.storage import FlashTensorStorage, read_flashpack_file
from .group import Ranks, join, own_device, world_size_of

Progress = Callable[[int, int], None]
# Who reads, from where to where of the memory, and pieces of that: each one's place in the file, and there.
_Window: TypeAlias = tuple[int, int, int, list[tuple[int, int, int]]]


def read_flashpack_file_distributed(
    path: ModelPath,
    device: Device = "cuda",
    src: int = 0,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    num_streams: int = DEFAULT_NUM_STREAMS,
    silent: bool | None = True,
    metadata: dict[str, Any] | None = None,
    sharded: bool = False,
    shard_strategy: str | None = None,
) -> tuple[FlashTensorStorage, dict[str, Any]]:
    """`read_flashpack_file` on every rank of the process group, reading the file once in all.

    Rank `src` reads and broadcasts; `sharded=True`: each rank reads its share and broadcasts that.
    `shard_strategy`: "contiguous" shares or "windows" in turn (default: FLASHPACK_SHARD_STRATEGY, else
    contiguous); FLASHPACK_SHARD_BYTES are sent at a time at most. Rank `src`'s settings and footer count.
    The blocks of one rank share a storage.

    Raises what reading raises, on every rank whichever it happened on; RuntimeError when a rank is lost.
    """
    if world_size_of() == 1:
        return read_flashpack_file(path, device, chunk_bytes, num_streams, silent, metadata)
    options = LoadOptions(distributed_sharded=sharded, distributed_shard_strategy=shard_strategy)
    with load_together(path, as_device(device), options, src=src, footer=metadata) as file:
        return FlashTensorStorage(file.blocks()), file.footer


@dataclass(frozen=True)
class _Sharing:
    """How the ranks load, as rank `src` says: the footer, and who reads how much."""

    footer: dict[str, Any]
    several: bool  # files, between which nothing is
    strategy: str | None  # None: rank `src` reads everything
    src: int
    window_bytes: int | None


@dataclass(frozen=True)
class SharedFile:
    """A file that all ranks load. Every method is called by all of them, in the same order."""

    ranks: Ranks
    path: str
    weights: OpenModel | None  # of the ranks that read
    device: torch.device
    sharing: _Sharing
    verify: bool | None = None
    progress: Progress | None = None

    @property
    def footer(self) -> dict[str, Any]:
        """The file's footer."""
        return self.sharing.footer

    @property
    def shown(self) -> str:
        """What messages call the file."""
        return shown_path(self.path)

    def described(self, ignore: Mapping[str, Iterable[str]]) -> dict[str, Tensor]:
        """The tensors that are not ignored, without data."""
        return described(self.footer, ignore)

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors; ties share memory. Only what they need is read."""
        wanted = list(names)
        return dict(zip(wanted, self._read(wanted), strict=True))

    def load(self, names: Iterable[str], silent: Silent) -> dict[str, Tensor]:
        """`tensors`, with progress of its own."""
        return replace(self, progress=silent if callable(silent) else None).tensors(names)

    def blocks(self) -> list[Tensor]:
        """The macroblocks, each 1-D."""
        return self._read(None)

    def _read(self, names: list[str] | None) -> list[Tensor]:
        plan = self.ranks.agree(lambda: self._plan(names))
        memory = self.ranks.agree(lambda: _allocate(plan["bytes"], self.device))
        asked = self.ranks.gather(lambda: (plan["steps"], self.device.type))
        if any(other != asked[0] for other in asked):
            raise ValueError(
                f"{self.shown}: the ranks load different tensors from it, or to different kinds of device"
            )
        self._carry_out(plan["steps"], memory)
        return self.ranks.agree(lambda: _tensors_in(memory, plan["tensors"]))

    def _plan(self, names: list[str] | None) -> dict[str, Any]:
        """What the ranks read: the `bytes` of all, where the `tensors` lie in them, and the `steps`."""
        plan: dict[str, Any] = native.call(
            "ranks",
            path=self.shown,
            footer=json.dumps(self.footer),
            several=self.sharing.several,
            names=names,
            ranks=self.ranks.size,
            strategy=self.sharing.strategy,
            src=self.sharing.src,
            window_bytes=self.sharing.window_bytes,
        )
        return plan

    def _carry_out(self, steps: list[list[_Window]], memory: Tensor) -> None:
        """Read this rank's windows, and exchange all: those of a step travel while the next are read."""
        travelling: list[Any] = []
        for step in steps:
            self.ranks.agree(lambda step=step: self._read_own(step, memory))  # type: ignore[misc]
            for work in travelling:
                self.ranks.wait(work)
            travelling = [self.ranks.broadcast(memory[start:stop], owner) for owner, start, stop, _ in step]
        for work in travelling:
            self.ranks.wait(work)

    def _read_own(self, step: list[_Window], memory: Tensor) -> None:
        for owner, _, _, pieces in step:
            if owner == self.ranks.rank:
                into = [memory[start:stop] for _, start, stop in pieces]
                assert self.weights is not None
                ops.fill_payload(
                    self.weights.handle, [place for place, *_ in pieces], into, verify=self.verify
                )
        if self.progress is not None:
            self.progress(max(stop for _, _, stop, _ in step), memory.numel())


def _tensors_in(memory: Tensor, places: Iterable[tuple[int, int, str, list[int]]]) -> list[Tensor]:
    """The tensors at these places (offset, bytes, dtype, shape) of `memory`; those of one place are tied."""
    flat: dict[tuple[int, int, str], Tensor] = {}
    result = []
    for offset, size, name, shape in places:
        if (offset, size, name) not in flat:
            dtype: torch.dtype = getattr(torch, name)
            raw = memory[offset : offset + size]
            flat[offset, size, name] = (raw if offset % dtype.itemsize == 0 else raw.clone()).view(dtype)
        result.append(flat[offset, size, name].view(shape))
    return result


def _same_file(weights: OpenModel, sharing: _Sharing, rank: int) -> OpenModel:
    """This rank's file, if it is the one that all load."""
    if weights.footer != sharing.footer:
        raise FlashPackError(f"{weights.shown}: rank {rank} has another file there than rank {sharing.src}")
    return weights


@contextmanager
def load_together(
    path: ModelPath,
    device: torch.device,
    options: LoadOptions,
    *,
    src: int = 0,
    footer: dict[str, Any] | None = None,
) -> Iterator[SharedFile]:
    """The file for all ranks, which agree on the footer and the sharing mode of rank `src`."""
    place = (options.rank, options.local_rank, options.world_size)

    def resolved() -> str | None:
        if not 0 <= src < ranks.size:
            raise ValueError(f"src must be a rank from 0 to {ranks.size - 1}, not {src}")
        # Of a URL all ranks read the version that one has found.
        return resolved_path(path) if ranks.rank == src or not has_url(model_path(path)) else None

    def settled() -> _Sharing | None:
        if weights is None:
            return None
        strategy = options.distributed_shard_strategy
        shared = resolve_shard_strategy(strategy) if options.distributed_sharded else None
        window_bytes = native.environment()["FLASHPACK_SHARD_BYTES"]
        return _Sharing(footer or weights.footer, weights.files > 1, shared, src, window_bytes)

    join(device, place[0], place[2])
    with Ranks(shown_path(model_path(path))) as ranks:
        own = ranks.agree(lambda: own_device(device, *place))
        places = ranks.gather(resolved)
        text = places[ranks.rank] or str(places[src])
        weights = ranks.agree(lambda: OpenModel(text) if ranks.rank == src else None)
        sharing = ranks.gather(settled)[src]
        assert sharing is not None
        if sharing.strategy is not None:
            weights = ranks.agree(lambda: _same_file(weights or OpenModel(text), sharing, ranks.rank))
        yield SharedFile(ranks, text, weights, own, sharing, options.verify, options.progress)


def _allocate(size: int, device: torch.device) -> Tensor:
    """Flat uint8; on the CPU from a page's beginning, so that direct reads land in it, and on huge pages."""
    if device.type == "cuda" or size == 0:
        return torch.empty(size, dtype=torch.uint8, device=device)
    if device.type != "cpu":
        raise ValueError(
            f"Unsupported device: FlashPack loads to the CPU and to CUDA devices, not to {device}"
        )
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size} bytes of memory cannot be had: {error}") from error
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
