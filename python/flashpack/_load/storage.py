"""0.4.5's block-wise reading: whole macroblocks, and the tensors in them."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._core import ops
from .._core.constants import DEFAULT_CHUNK_BYTES, DEFAULT_NUM_STREAMS
from .._core.dtypes import get_packing_dtype
from .._core.names import is_ignored_tensor_name
from .._core.native import environment
from .._core.paths import StrPath, text_path
from .._core.progress import Silent
from .._files.opened import OpenModel
from .._files.sources import ModelPath, model_path
from .load import Device, Reading, as_device, load_blocks, load_tensors

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass
class MacroblockSpec:
    """A macroblock: where it begins in the file, its bytes and its elements."""

    dtype: torch.dtype
    offset_bytes: int
    length_bytes: int
    length_elems: int


@dataclass
class TensorIndexRecord:
    """A tensor in a macroblock: `offset` and `length` count the macroblock's elements."""

    name: str
    shape: list[int]
    offset: int
    length: int
    macroblock: int = 0


@dataclass
class MacroblockPlan:
    """A macroblock and its tensors, each of which begins at a multiple of `align_elems` elements."""

    dtype: torch.dtype
    offset_bytes: int
    length_bytes: int
    total_elems: int
    align_elems: int
    tensors: list[TensorIndexRecord]


@dataclass
class FlashTensorStorage:
    """The macroblocks of a file: `blocks[i]` is 1-D, of block i's dtype and length.

    `backing_arrays`: the mapped file behind the blocks, as one numpy array for each, of unsigned integers
    where numpy lacks the dtype. None for blocks with memory of their own, and without numpy.
    """

    blocks: list[Tensor]
    backing_arrays: list[Any] | None = None

    def block(self, idx: int) -> Tensor:
        """Macroblock `idx`."""
        return self.blocks[idx]

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the blocks are; the CPU when there are none."""
        return self.blocks[0].device if self.blocks else torch.device("cpu")


def read_flashpack_file(
    path: ModelPath,
    device: Device = "cpu",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,  # noqa: ARG001 (0.4.5's signature)
    num_streams: int = DEFAULT_NUM_STREAMS,  # noqa: ARG001 (0.4.5's signature)
    silent: Silent = True,
    metadata: dict[str, Any] | None = None,
    *,
    eager: bool | None = None,
    verify: bool | None = None,
) -> tuple[FlashTensorStorage, dict[str, Any]]:
    """The blocks of a file and its footer (`metadata` when given, as it is).

    Of safetensors, and of several files, the footer that one FlashPack file of the same blocks would have.

    `chunk_bytes` and `num_streams` are accepted and not needed. Errors as in `load_file`, and ValueError for
    the meta device.
    """
    target = as_device(device)
    model = OpenModel(model_path(path))
    storage = read_blocks(model, target, eager=eager, verify=verify, silent=silent)
    return storage, metadata or model.footer


def read_blocks(model: OpenModel, device: torch.device, **reading: Unpack[Reading]) -> FlashTensorStorage:
    """The blocks of a model. Raises ValueError for the meta device."""
    if device.type == "meta":
        raise ValueError(f"Unsupported device: {device}: blocks without data say no more than the footer")
    blocks = load_blocks(model, device, **reading)
    eager = reading.get("eager")
    reads = environment()["FLASHPACK_CPU_PARALLEL_READ"] if eager is None else eager
    return FlashTensorStorage(blocks, None if reads or device.type != "cpu" else _arrays(blocks))


def _arrays(blocks: Iterable[Tensor]) -> list[Any] | None:
    if importlib.util.find_spec("numpy") is None:
        return None
    return [block.view(get_packing_dtype(block.dtype)).numpy() for block in blocks]


def parallel_read_into_storage(
    path: StrPath, specs: Iterable[MacroblockSpec], blocks: Iterable[Tensor], device: torch.device
) -> None:
    """Fill `blocks`, contiguous tensors on `device`, with the bytes of `specs` of a FlashPack file.

    Checksums are verified. Raises what `load_file` raises, and ValueError for bytes outside of the payload,
    a block of another size than its spec, or one on another device.
    """
    pairs = list(zip(specs, blocks, strict=True))
    for number, (spec, block) in enumerate(pairs):
        if block.nbytes != spec.length_bytes or block.device.type != device.type:
            raise ValueError(
                f"block {number} has {block.nbytes} bytes on {block.device}, but its spec has "
                f"{spec.length_bytes}, for {device}"
            )
    ops.fill_payload(
        OpenModel(text_path(path)).handle,
        [spec.offset_bytes for spec, _ in pairs],
        [block.view(-1).view(torch.uint8) for _, block in pairs],
        verify=None,
    )


def sharded_read_available() -> bool:
    """Whether ranks may share the reading of a file: unless FLASHPACK_PARALLEL_READ=0."""
    available: bool = environment()["FLASHPACK_PARALLEL_READ"]
    return available


def parallel_read_supported(device: torch.device) -> bool:
    """Whether loads to `device` read with several threads: to CUDA, and to the CPU unless they map the file.

    FLASHPACK_PARALLEL_READ=0 forbids it; FLASHPACK_CPU_PARALLEL_READ=1 has the CPU read.
    """
    wanted: bool = device.type == "cuda" or (
        device.type == "cpu" and environment()["FLASHPACK_CPU_PARALLEL_READ"]
    )
    return wanted and sharded_read_available()


def iterate_from_flash_tensor(
    flash_tensor: FlashTensorStorage | Tensor,
    metadata: Mapping[str, Any],
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
    *,
    include: Iterable[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """(name, view into its block) of every record that is not ignored, in file order.

    `metadata` is any footer-like dict: every record is checked against its block before the first view
    is handed out. Raises ValueError for misaligned records, records past their block, shapes that do not
    match their length and macroblocks that do not exist. Records without elements may lie anywhere.
    """
    blocks = flash_tensor.blocks if isinstance(flash_tensor, FlashTensorStorage) else [flash_tensor]
    _check_alignment(metadata, blocks)
    for record in metadata["index"]:
        _check_bounds(record, _block_of(record, blocks))
    for record in metadata["index"]:
        name = record["name"]
        if not is_ignored_tensor_name(name, ignore_names, ignore_prefixes, ignore_suffixes, include):
            yield name, _view(record, _block_of(record, blocks))


def _view(record: Mapping[str, Any], block: Tensor) -> Tensor:
    if record["length"] == 0:
        return block.new_empty(record["shape"])
    return block.narrow(0, record["offset"], record["length"]).view(record["shape"])


def _block_of(record: Mapping[str, Any], blocks: list[Tensor]) -> Tensor:
    number: int = record.get("macroblock", 0)
    if not 0 <= number < len(blocks):
        raise ValueError(
            f"Index entry {record['name']!r} references invalid macroblock {number} of {len(blocks)}."
        )
    return blocks[number]


def _check_alignment(metadata: Mapping[str, Any], blocks: list[Tensor]) -> None:
    align_bytes = int(metadata.get("align_bytes", 0))
    if not align_bytes:
        return
    bad = []
    for record in metadata["index"]:
        item = _block_of(record, blocks).element_size()
        if record["length"] and record["offset"] % (align_bytes // math.gcd(align_bytes, item)):
            bad.append(record["name"])
    if bad:
        raise ValueError(f"{len(bad)} index entries are misaligned (e.g., {', '.join(bad[:3])}).")


def _check_bounds(record: Mapping[str, Any], block: Tensor) -> None:
    name, shape = record["name"], record["shape"]
    offset, length = record["offset"], record["length"]
    outside = length and (offset < 0 or offset + length > block.numel())
    if min(length, *shape, 0) < 0 or outside:
        raise ValueError(
            f"Could not get tensor for record {name!r}: elements {offset}..{offset + length} lie outside its "
            f"block of {block.numel()}"
        )
    if math.prod(shape) != length:
        raise ValueError(
            f"Could not get tensor for record {name!r}: shape {list(shape)} does not have {length} elements"
        )


def revert_from_file(path: ModelPath, silent: bool = True) -> dict[str, Tensor]:
    """The file's tensors as a state dict on the CPU (`load_file`, under 0.4.5's name)."""
    return load_tensors(OpenModel(model_path(path)), torch.device("cpu"), silent=silent)
