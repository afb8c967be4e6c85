"""Loads by all ranks of torch.distributed together: the file is read once, whatever their number."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._core import ops
from .._core.errors import FlashPackError
from .._core.index import Block, blocks_of, records_of
from .._core.names import is_ignored_tensor_name
from .._core.paths import SEPARATOR
from .._core.progress import Silent
from .._files.opened import OpenModel
from .._files.sources import ModelPath, model_path, shown_path
from .._load.load import Device, as_device
from .._load.options import LoadOptions, resolve_shard_strategy
from .._load.storage import FlashTensorStorage, read_flashpack_file
from ..constants import DEFAULT_CHUNK_BYTES, DEFAULT_NUM_STREAMS, SHARD_ALIGN_BYTES
from .group import Ranks, join, own_device, world_size_of
from .windows import BROADCAST, Image, Range, Window, plan_steps

_DEFAULT_UNIT_BYTES = 1 << 20

Progress = Callable[[int, int], None]


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
    target = as_device(device)
    join(target)
    with Ranks(str(path)) as ranks:
        own = ranks.agree(lambda: own_device(target))
        shared = SharedFile.open(
            ranks, path, own, src=src, sharded=sharded, strategy=shard_strategy, footer=metadata
        )
        return FlashTensorStorage(shared.blocks()), shared.footer


@dataclass(frozen=True)
class _Manner:
    """How the ranks load, as rank `src` says."""

    footer: dict[str, Any]
    mode: str
    src: int
    window_bytes: int | None


@dataclass(frozen=True)
class SharedFile:
    """A file that all ranks load. Every method is called by all of them, in the same order."""

    ranks: Ranks
    path: str
    weights: OpenModel | None  # of the ranks that read
    device: torch.device
    manner: _Manner
    verify: bool | None = None
    progress: Progress | None = None

    @classmethod
    def open(
        cls,
        ranks: Ranks,
        path: ModelPath,
        device: torch.device,
        *,
        src: int = 0,
        sharded: bool = False,
        strategy: str | None = None,
        footer: dict[str, Any] | None = None,
        verify: bool | None = None,
        progress: Progress | None = None,
    ) -> SharedFile:
        """Agree on the footer and the manner of rank `src`."""

        def mine() -> OpenModel | None:
            if not 0 <= src < ranks.size:
                raise ValueError(f"src must be a rank from 0 to {ranks.size - 1}, not {src}")
            if strategy is not None:
                resolve_shard_strategy(strategy)
            return OpenModel(text) if ranks.rank == src else None

        def settled() -> _Manner | None:
            if weights is None:
                return None
            mode = resolve_shard_strategy(strategy) if sharded else BROADCAST
            return _Manner(footer or weights.footer, mode, src, _shard_bytes())

        text = ranks.agree(lambda: model_path(path))
        weights = ranks.agree(mine)
        manner = ranks.gather(settled)[src]
        assert manner is not None
        if manner.mode != BROADCAST:
            weights = ranks.agree(lambda: _same_file(weights or OpenModel(text), manner, ranks.rank))
        return cls(ranks, text, weights, device, manner, verify, progress)

    @property
    def footer(self) -> dict[str, Any]:
        """The file's footer."""
        return self.manner.footer

    @property
    def shown(self) -> str:
        """What messages call the file."""
        return shown_path(self.path)

    def described(self, ignore: Mapping[str, Iterable[str]]) -> dict[str, Tensor]:
        """The tensors that are not ignored, without data."""
        return {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for name, shape, dtype in records_of(self.footer)
            if not is_ignored_tensor_name(name, **ignore)
        }

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors; ties share memory. Only what they need is read."""
        blocks = blocks_of(self.footer)
        records = {record["name"]: record for record in self.footer["index"]}
        places = {}
        for name in names:
            record = records[name]
            block = blocks[record.get("macroblock", 0)]
            places[name] = (_part(block, record["offset"], record["length"]), record["shape"])
        flat = self._read({part for part, _ in places.values()})
        return {name: flat[part].view(shape) for name, (part, shape) in places.items()}

    def load(self, names: Iterable[str], silent: Silent) -> dict[str, Tensor]:
        """`tensors`, with progress of its own."""
        return replace(self, progress=silent if callable(silent) else None).tensors(names)

    def blocks(self) -> list[Tensor]:
        """The macroblocks, each 1-D."""
        parts = [_part(block, 0, block.length) for block in blocks_of(self.footer)]
        flat = self._read(set(parts))
        return [flat[part] for part in parts]

    def _read(self, parts: set[_Part]) -> dict[_Part, Tensor]:
        image = Image.of((part.range for part in parts), _unit(self.footer), self._whole())
        memory = self.ranks.agree(lambda: _allocate(image.bytes, self.device))
        asked = self.ranks.gather(lambda: (image, self.device.type))
        if any(other != asked[0] for other in asked):
            raise ValueError(
                f"{self.shown}: the ranks load different tensors from it, or to different kinds of device"
            )
        steps = plan_steps(
            image.bytes,
            self.ranks.size,
            self.manner.mode,
            src=self.manner.src,
            unit=_unit(self.footer),
            window_bytes=self.manner.window_bytes,
        )
        self._carry_out(steps, image, memory)
        return self.ranks.agree(lambda: {part: part.of(image, memory) for part in parts})

    def _whole(self) -> list[Range]:
        """What can be read whole: the payload, or the blocks of several files, between which nothing is."""
        blocks = sorted(_whole(block).range for block in blocks_of(self.footer) if block.length)
        several = SEPARATOR in self.path or self.path.endswith(".json")
        return blocks if several or not blocks else [(0, blocks[-1][1])]

    def _carry_out(self, steps: list[list[Window]], image: Image, memory: Tensor) -> None:
        """Read this rank's windows, and exchange all: those of a step travel while the next are read."""
        travelling: list[Any] = []
        for step in steps:
            self.ranks.agree(lambda step=step: self._read_own(step, image, memory))  # type: ignore[misc]
            for work in travelling:
                self.ranks.wait(work)
            travelling = [
                self.ranks.broadcast(memory[window.start : window.stop], window.owner) for window in step
            ]
        for work in travelling:
            self.ranks.wait(work)

    def _read_own(self, step: list[Window], image: Image, memory: Tensor) -> None:
        for window in step:
            if window.owner == self.ranks.rank:
                pieces = list(image.pieces(window.start, window.stop))
                into = [memory[start:stop] for _, start, stop in pieces]
                assert self.weights is not None
                ops.fill_payload(
                    self.weights.handle, [place for place, *_ in pieces], into, verify=self.verify
                )
        if self.progress is not None:
            self.progress(max(window.stop for window in step), image.bytes)


@dataclass(frozen=True)
class _Part:
    """Elements of the file: `bytes` from `start` on."""

    start: int
    bytes: int
    dtype: str

    @property
    def range(self) -> Range:
        """Where in the file."""
        return self.start, self.start + self.bytes

    def of(self, image: Image, memory: Tensor) -> Tensor:
        """These elements of an image that was read into `memory`, 1-D."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        if self.bytes == 0:
            return torch.empty(0, dtype=dtype, device=memory.device)
        offset = image.offset_of(self.start)
        raw = memory[offset : offset + self.bytes]
        return (raw if offset % dtype.itemsize == 0 else raw.clone()).view(dtype)


def _same_file(weights: OpenModel, manner: _Manner, rank: int) -> OpenModel:
    """This rank's file, if it is the one that all load."""
    if weights.footer != manner.footer:
        raise FlashPackError(f"{weights.shown}: rank {rank} has another file there than rank {manner.src}")
    return weights


def _part(block: Block, offset: int, length: int) -> _Part:
    size: int = getattr(torch, block.dtype).itemsize
    start = block.offset_bytes + offset * size if length else 0  # what is empty may claim any place
    return _Part(start, length * size, block.dtype)


def _whole(block: Block) -> _Part:
    return _part(block, 0, block.length)


@contextmanager
def load_together(path: ModelPath, device: torch.device, options: LoadOptions) -> Iterator[SharedFile]:
    """The file at `path`, for all ranks as `options` say."""
    join(device, options.rank, options.world_size)
    with Ranks(str(path)) as ranks:
        place = (options.rank, options.local_rank, options.world_size)
        yield SharedFile.open(
            ranks,
            path,
            ranks.agree(lambda: own_device(device, *place)),
            sharded=options.distributed_sharded,
            strategy=options.distributed_shard_strategy,
            verify=options.verify,
            progress=options.progress,
        )


def _shard_bytes() -> int | None:
    text = os.environ.get("FLASHPACK_SHARD_BYTES", "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"FLASHPACK_SHARD_BYTES is {text!r}, expected a positive integer")
    return int(text)


def _unit(footer: dict[str, Any]) -> int:
    """Bytes that are read whole: those of a checksum, as far as direct reads can begin at any multiple."""
    chunk: int = footer.get("checksums", {}).get("chunk_bytes", _DEFAULT_UNIT_BYTES)
    return chunk if chunk % SHARD_ALIGN_BYTES == 0 else chunk * SHARD_ALIGN_BYTES


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
