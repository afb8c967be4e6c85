"""The models that are loaded: what they hold, and their files in every format, kept between runs.

Every byte follows from the recipe, so that what a loader gives can be compared with it, tensor by tensor.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import measure
import torch
from torch import Tensor, nn

TINY = ("dtypes", 0.001)
"""What a contender handles once before it is timed."""

SUFFIXES = (".flashpack", ".safetensors", ".pt")

# A prime: neither tensors nor the chunks of a read start at the same place of the noise twice.
_NOISE_BYTES = 16_777_259
_STRIDE = 104_729
# What every format and every peer here knows.
_DTYPES = "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool float8_e4m3fn float8_e5m2"


@dataclass(frozen=True)
class Spec:
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        itemsize: int = getattr(torch, self.dtype).itemsize
        return math.prod(self.shape) * itemsize


def _transformer(hidden: int, layers: int, vocabulary: int, scale: float) -> Iterator[Spec]:
    """Shapes of a decoder; `scale` is that of its bytes, so its root is that of its width."""
    width = max(64, round(hidden * math.sqrt(scale) / 64) * 64)
    if vocabulary:
        yield Spec("embed.weight", "bfloat16", (max(64, round(vocabulary * math.sqrt(scale))), width))
    for layer in range(layers):
        at = f"layers.{layer}"
        for part in ("q", "k", "v", "o"):
            yield Spec(f"{at}.attention.{part}.weight", "bfloat16", (width, width))
        yield Spec(f"{at}.mlp.up.weight", "bfloat16", (4 * width, width))
        yield Spec(f"{at}.mlp.down.weight", "bfloat16", (width, 4 * width))
        for norm in ("before", "after"):
            yield Spec(f"{at}.{norm}.weight", "bfloat16", (width,))


def _few_large(scale: float) -> Iterator[Spec]:
    rows = max(64, round(65536 * scale))
    for number in range(6):
        yield Spec(f"blocks.{number}.weight", "bfloat16", (rows, 4096))


def _parts(scale: float) -> Iterator[Spec]:
    """200 of 4 MiB, each to be a shard."""
    for number in range(200):
        yield Spec(f"parts.{number}", "bfloat16", (max(1, round(2048 * scale)), 1024))


def _many_small(scale: float) -> Iterator[Spec]:
    for number in range(max(50, round(5000 * scale))):
        yield Spec(f"layers.{number}.weight", "float32", (512,))


def _many_dtypes(scale: float) -> Iterator[Spec]:
    rows = max(1, round(1024 * scale))
    for number, dtype in itertools.product(range(12), _DTYPES.split()):
        yield Spec(f"parts.{number}.of_{dtype}", dtype, (rows, 1024))
        yield Spec(f"parts.{number}.of_{dtype}_scale", dtype, (3,))


MODELS: dict[str, Callable[[float], Iterator[Spec]]] = {
    "small": functools.partial(_transformer, 512, 8, 0),
    "many": _many_small,
    "dtypes": _many_dtypes,
    "1.3B": functools.partial(_transformer, 2048, 24, 50257),
    "large": _few_large,
    "parts": _parts,
}
WHOLE = ("small", "many", "dtypes", "1.3B", "large")
"""Those of `run.py`."""


def specs(model: str, scale: float) -> list[Spec]:
    return list(MODELS[model](scale))


@functools.cache
def _noise() -> Tensor:
    draws = torch.empty(-(-_NOISE_BYTES // 8), dtype=torch.int64)
    draws.random_(-(1 << 62), 1 << 62, generator=torch.Generator().manual_seed(2301))
    return draws.view(torch.uint8)[:_NOISE_BYTES]


def _pieces(number: int, spec: Spec) -> Iterator[tuple[int, Tensor]]:
    """The noise that the tensor of this place is, piece by piece, and where in it each goes."""
    noise, start, filled = _noise(), number * _STRIDE % _NOISE_BYTES, 0
    while filled < spec.nbytes:
        piece = noise[start : start + spec.nbytes - filled]
        yield filled, piece
        start, filled = 0, filled + len(piece)


def tensor(number: int, spec: Spec) -> Tensor:
    """The tensor of this place in its model."""
    data = torch.empty(spec.nbytes, dtype=torch.uint8)
    for at, piece in _pieces(number, spec):
        data[at : at + len(piece)] = piece
    if spec.dtype == "bool":
        data &= 1
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return data.view(dtype).reshape(spec.shape)


def state(model: str, scale: float) -> dict[str, Tensor]:
    return {spec.name: tensor(number, spec) for number, spec in enumerate(specs(model, scale))}


def check(loaded: Mapping[str, Tensor], model: str, scale: float) -> None:
    """Raise ValueError unless `loaded` is, bit by bit, what the recipe says."""
    wanted = specs(model, scale)
    if set(loaded) != {spec.name for spec in wanted}:
        raise ValueError(f"the names are not those of {model}: {len(loaded)} of {len(wanted)}")
    for number, spec in enumerate(wanted):
        got = loaded[spec.name].detach()
        if (got.dtype, got.shape) != (getattr(torch, spec.dtype), spec.shape):
            raise ValueError(f"{spec.name} is {got.dtype} {tuple(got.shape)}, not {spec}")
        if not _holds(got, number, spec):
            raise ValueError(f"the bytes of {spec.name} are not those that were written")


def _holds(got: Tensor, number: int, spec: Spec) -> bool:
    data = got.contiguous()
    pieces = [(0, tensor(number, spec))] if spec.dtype == "bool" else _pieces(number, spec)
    return all(
        measure.same_bytes(data.data_ptr() + at, piece.data_ptr(), piece.nbytes) for at, piece in pieces
    )


def module(model: str, scale: float) -> nn.Module:
    """A module with the model's parameters (integers as buffers), in memory that is there already."""
    root = nn.Module()
    for spec in specs(model, scale):
        *folders, leaf = spec.name.split(".")
        owner = root
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        data = torch.ones(spec.nbytes, dtype=torch.uint8).view(getattr(torch, spec.dtype)).reshape(spec.shape)
        if data.is_floating_point():
            owner.register_parameter(leaf, nn.Parameter(data, requires_grad=False))
        else:
            owner.register_buffer(leaf, data)
    return root


def build(model: str, scale: float, root: Path) -> Path:
    """The folder with the model's files `model.*`, made unless it is there from an earlier run."""
    import flashpack

    recipe = repr([astuple(spec) for spec in specs(model, scale)])
    known = f"{recipe} {_NOISE_BYTES} {_STRIDE} {flashpack.__version__}"
    prefix = f"{model}-x{scale:g}-"
    folder = root / f"{prefix}{hashlib.sha256(known.encode()).hexdigest()[:12]}"
    if not folder.exists():
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob(f"{prefix}*"):
            shutil.rmtree(stale)
        fresh = Path(tempfile.mkdtemp(dir=root, prefix="new-"))
        try:
            _write(state(model, scale), fresh)
            fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    for left in folder.iterdir():  # by a run that was killed
        if left.stem != "model":
            left.unlink()
    return folder


def _write(tensors: dict[str, Tensor], folder: Path) -> None:
    import flashpack
    import safetensors.torch

    flashpack.save_file(tensors, folder / "model.flashpack")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    torch.save(tensors, folder / "model.pt")
    for suffix in SUFFIXES:  # pages that are not on disk yet cannot be dropped from the page cache
        with (folder / f"model{suffix}").open("rb") as file:
            os.fsync(file.fileno())
