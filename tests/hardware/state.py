"""Tensors whose bytes are known, and files of them: what checks and loads are held against."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

MIB = 1 << 20
_TILE_BYTES = 64 * MIB
_DTYPE, _DTYPE_NAME = torch.bfloat16, "BF16"


def noise(size: int, seed: int) -> Tensor:
    """`size` random bytes."""
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def small(size: int) -> dict[str, Tensor]:
    """About `size` bytes in a dozen tensors of several types and odd sizes, two of them tied, one empty."""
    part = size // 12
    tensors = {f"bytes.{number}": noise(part - 7 * number, number) for number in range(9)}
    tensors["halves"] = noise(2 * (part // 2), 10).view(torch.bfloat16)
    tensors["floats"] = noise(4 * (part // 8 * 2), 11).view(torch.float32).reshape(2, -1)
    tensors["none"] = torch.empty(0, 3)
    tensors["tied"] = tensors["floats"]
    return tensors


def layers(size: int) -> Iterator[tuple[str, Tensor]]:
    """About `size` bytes as the layers of a model: one pattern, marked with the layer's number."""
    each = max(size // 200 // 512 * 512, 512)
    tile = noise(min(each, _TILE_BYTES), 0)
    for number in range(size // each):
        layer = tile.repeat(-(-each // len(tile)))[:each]
        layer[:8] = torch.tensor(list(struct.pack("<q", number)), dtype=torch.uint8)
        yield f"layers.{number}.weight", layer.view(_DTYPE)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file as safetensors has it, written without that package."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        place = [offset, offset := offset + tensor.nbytes]
        header[name] = {"dtype": _DTYPE_NAME, "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(memoryview(tensor.view(torch.uint8).numpy()))


def require_same(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    """Raises AssertionError unless the tensors are the same, bit for bit."""
    assert got.keys() == want.keys(), f"{set(got) ^ set(want)} are not in both"
    for name, tensor in got.items():
        require_equal(name, tensor, want[name])


def require_equal(name: str, got: Tensor, want: Tensor) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{name} is {got.dtype} {list(got.shape)}"
    here = got.detach().cpu().reshape(-1).view(torch.uint8)
    assert torch.equal(here, want.reshape(-1).view(torch.uint8)), f"the bytes of {name} are others"
