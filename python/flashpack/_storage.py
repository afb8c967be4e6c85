"""0.4.5's block-wise reading: whole macroblocks, and the tensors in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._footer import read_index
from ._load import Device, as_device, load_blocks, load_tensors
from ._names import is_ignored_tensor_name
from ._paths import read_one_version
from ._progress import Silent
from ._sources import ModelPath, model_path
from .constants import DEFAULT_CHUNK_BYTES, DEFAULT_NUM_STREAMS


@dataclass(frozen=True)
class FlashTensorStorage:
    """The macroblocks of a file: `blocks[i]` is 1-D, of block i's dtype and length."""

    blocks: list[Tensor]

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

    `chunk_bytes` and `num_streams` are accepted and not needed. Errors as in `load_file`.
    """
    text = model_path(path)

    def read() -> tuple[FlashTensorStorage, dict[str, Any]]:
        footer = metadata or read_index(text)
        return read_blocks(text, as_device(device), eager=eager, verify=verify, silent=silent), footer

    return read_one_version(text, read)


def read_blocks(
    path: str, device: torch.device, *, eager: bool | None, verify: bool | None, silent: Silent
) -> FlashTensorStorage:
    """The blocks of a model, by a path as `model_path` gives it."""
    return FlashTensorStorage(load_blocks(path, device, eager=eager, verify=verify, silent=silent))


def iterate_from_flash_tensor(
    flash_tensor: FlashTensorStorage | Tensor,
    metadata: Mapping[str, Any],
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
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
        if not is_ignored_tensor_name(name, ignore_names, ignore_prefixes, ignore_suffixes):
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
            f"record {name!r}: elements {offset}..{offset + length} lie outside its block of {block.numel()}"
        )
    if math.prod(shape) != length:
        raise ValueError(f"record {name!r}: shape {list(shape)} does not have {length} elements")


def revert_from_file(path: ModelPath, silent: bool = True) -> dict[str, Tensor]:
    """The file's tensors as a state dict on the CPU (`load_file`, under 0.4.5's name)."""
    return load_tensors(model_path(path), torch.device("cpu"), silent=silent)
