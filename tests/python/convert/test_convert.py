"""Conversion to FlashPack of one safetensors file: every dtype, casts, bounded memory."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import flashpack
import pytest
import torch
from conversion import snapshot, some_tensors
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from helpers import (
    DAMAGED_SAFETENSORS,
    MIB,
    SAFETENSORS_DTYPES,
    assert_same,
    bits,
    dtype_id,
    header_only,
    noise,
    read_footer,
)
from processes import python, succeed
from safetensors.torch import load_file, save_file
from torch import Tensor

GIB = 1 << 30
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(some_tensors(), tmp_path / "weights.safetensors", {"format": "pt", "licence": "mit"})
    return tmp_path / "weights.safetensors"


@pytest.fixture
def packed(path: Path) -> Path:
    flashpack.save_file(some_tensors(), path, metadata={"licence": "mit"})
    return path


# One safetensors file.


@pytest.mark.parametrize("dtype", SAFETENSORS_DTYPES, ids=dtype_id)
def test_every_safetensors_dtype_there_and_back(tmp_path: Path, path: Path, dtype: torch.dtype) -> None:
    given = {"a": noise(dtype, (5, 4), seed=1), "b": noise(dtype, (3,), seed=2), "none": noise(dtype, (0, 2))}
    save_file(given, tmp_path / "a.safetensors")
    convert_to_flashpack(tmp_path / "a.safetensors", path)
    assert_same(flashpack.load_file(path), given)
    revert_from_flashpack(path, tmp_path / "b.safetensors")
    assert_same(load_file(tmp_path / "b.safetensors"), given)


def test_a_safetensors_file(source: Path, path: Path) -> None:
    assert convert_to_flashpack(source, path) == str(path)
    assert_same(flashpack.load_file(path), load_file(source))
    with flashpack.open(path) as file:
        assert file.metadata() == {"format": "pt", "licence": "mit"}
    assert flashpack.verify_file(path).algorithm == "xxh3_64"


def test_without_metadata(tmp_path: Path, path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    convert_to_flashpack(tmp_path / "a.safetensors", path)
    assert "metadata" not in read_footer(path)


def test_many_small_tensors_keep_their_names_apart(tmp_path: Path, path: Path) -> None:
    given = {
        f"layer.{number}.weight": noise(torch.float16, (number % 7 + 1,), number) for number in range(500)
    }
    save_file(given, tmp_path / "a.safetensors")
    convert_to_flashpack(tmp_path / "a.safetensors", path)
    assert_same(flashpack.load_file(path, eager=True), given)


ODD_NAMES = ["层.重み", 'qu"ote\\', "a b\n", "\u00e9", "e\u0301", "🔥", ""]


def test_names_in_any_script(tmp_path: Path, path: Path) -> None:
    given = {
        name: noise(torch.int8, (3,), seed)
        for seed, name in enumerate(["层.重み", 'qu"ote\\', "a b\n", "é", "é"])
    }
    save_file(given, tmp_path / "a.safetensors")
    convert_to_flashpack(tmp_path / "a.safetensors", path)
    assert_same(flashpack.load_file(path), given)


DAMAGED = {**DAMAGED_SAFETENSORS, "FlashPack": None}


@pytest.mark.parametrize("dtype", [None, "float8_e4m3fn"], ids=["native", "torch"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_safetensors_are_refused(tmp_path: Path, path: Path, damage: str, dtype: str | None) -> None:
    source = tmp_path / "damaged.safetensors"
    content = DAMAGED[damage]
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        flashpack.save_file({"a": torch.zeros(2)}, source)
    path.write_bytes(b"the old file")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(source))):
        convert_to_flashpack(source, path, dtype)
    assert snapshot(tmp_path) == before


# Casts.

BIT_PATTERNS_16 = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
SPECIAL = [
    *(0.0, -0.0, 1.0, -1.0, 1 / 3, float("inf"), -float("inf"), float("nan")),
    *(65504.0, 65519.996, 65520.0, -65520.0, 1e5, 3.4028234e38, 3.39e38, 3.4e38, 1e39, -1e300),
    *(2.0**-14, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 2.0**-26, 6.1e-5, 5.96e-8, -2.98e-8, 1e-10),
    *(2.0**-126, 2.0**-149, 1e-40, 1e-45, 1e-46, 5e-324, 2.2250738585072014e-308),
    *(2049.0, 2050.0, 2051.0, 257.0, 258.0, 259.0, 1.00390625, 1.01171875),
    *(1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-24, 1 + 2.0**-24 + 2.0**-50, 1 + 2.0**-9 + 2.0**-40),
]


def castable(dtype: torch.dtype) -> Tensor:
    """All values of a 16-bit type; else corners, random bits, ordinary numbers, halves and their ties."""
    if dtype.itemsize == 2:
        return BIT_PATTERNS_16.view(dtype)
    halves = torch.cat(
        [BIT_PATTERNS_16.view(torch.float16), BIT_PATTERNS_16.view(torch.bfloat16).to(torch.float16)]
    )
    near = halves.to(dtype)
    return torch.cat(
        [
            torch.tensor(SPECIAL, dtype=torch.float64).to(dtype),
            noise(dtype, (20_000,), seed=5),
            torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).to(dtype),
            near,  # and the two neighbours of every half
            torch.nextafter(near, torch.full_like(near, float("inf"))),
            torch.nextafter(near, torch.full_like(near, -float("inf"))),
            (near[:-1] + near[1:]) / 2,  # ties
        ]
    )


def assert_cast(actual: Tensor, given: Tensor, dtype: torch.dtype) -> None:
    """The same bits as torch's cast; where that is NaN, any NaN."""
    expected = given.to(dtype)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    wrong = (actual.view(integers) != expected.view(integers)) & ~nan
    assert not wrong.any(), (given[wrong][:5], actual[wrong][:5], expected[wrong][:5])


@pytest.mark.parametrize("target", FLOATS, ids=dtype_id)
@pytest.mark.parametrize("origin", FLOATS, ids=dtype_id)
def test_casts_as_torch_does(tmp_path: Path, path: Path, origin: torch.dtype, target: torch.dtype) -> None:
    given = castable(origin)
    save_file({"a": given}, tmp_path / "a.safetensors")
    convert_to_flashpack(tmp_path / "a.safetensors", path, target)
    actual = flashpack.load_file(path)["a"]
    if origin == target:
        assert bits(actual) == bits(given)
    assert_cast(actual, given, target)


@pytest.mark.parametrize("origin", FLOATS, ids=dtype_id)
@pytest.mark.parametrize("target", [torch.float8_e4m3fn, torch.float8_e5m2], ids=dtype_id)
def test_casts_that_only_torch_makes(
    tmp_path: Path, path: Path, origin: torch.dtype, target: torch.dtype
) -> None:
    given = castable(origin)
    save_file({"a": given, "steps": torch.tensor(2301)}, tmp_path / "a.safetensors", {"kept": "yes"})
    convert_to_flashpack(tmp_path / "a.safetensors", path, dtype_id(target))
    loaded = flashpack.load_file(path)
    assert_cast(loaded["a"], given, target)
    assert (loaded["steps"].dtype, loaded["steps"].item()) == (torch.int64, 2301)


def test_a_cast_by_torch_keeps_the_metadata(source: Path, path: Path) -> None:
    convert_to_flashpack(source, path, torch.float8_e5m2)
    with flashpack.open(path) as file:
        assert file.metadata() == {"format": "pt", "licence": "mit"}


def test_casts_keep_the_sign_of_zero_and_reach_infinity(tmp_path: Path, path: Path) -> None:
    save_file({"a": torch.tensor([-0.0, 1e6, -1e6, 2.0**-24])}, tmp_path / "a.safetensors")
    convert_to_flashpack(tmp_path / "a.safetensors", path, "half")
    assert bits(flashpack.load_file(path)["a"]) == struct.pack("<4H", 0x8000, 0x7C00, 0xFC00, 0x0001)


@pytest.mark.parametrize("dtype", ["float16", "torch.float16", "half", torch.float16])
def test_a_dtype_has_several_names(source: Path, path: Path, dtype: str | torch.dtype) -> None:
    convert_to_flashpack(source, path, dtype)
    assert flashpack.load_file(path)["scale"].dtype == torch.float16


@pytest.mark.parametrize("target", [*FLOATS, torch.float8_e4m3fn], ids=dtype_id)
def test_only_floating_tensors_are_cast(tmp_path: Path, path: Path, target: torch.dtype) -> None:
    dtypes = [dtype for dtype in SAFETENSORS_DTYPES if not dtype.is_floating_point]
    given = {dtype_id(dtype): noise(dtype, (11,), seed=7) for dtype in dtypes}
    save_file({**given, "a": torch.ones(3)}, tmp_path / "a.safetensors")
    convert_to_flashpack(tmp_path / "a.safetensors", path, target)
    loaded = flashpack.load_file(path)
    assert loaded.pop("a").dtype == target
    assert_same(loaded, given)


# Bounded memory. The file is sparse: only its header takes disk space.


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("large")
    source = folder / "large.safetensors"
    count, size = 4, GIB // 4
    header = {
        f"layer.{number}": {
            "dtype": "F32",
            "shape": [size // 4],
            "data_offsets": [number * size, (number + 1) * size],
        }
        for number in range(count)
    }
    source.write_bytes(header_only(header))
    os.truncate(source, source.stat().st_size + count * size)
    yield source
    for file in folder.iterdir():
        file.unlink()


PEAK = """
import sys
import flashpack
from flashpack._core import native as _native
from flashpack.commands import convert_to_flashpack, revert_from_flashpack

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

_native._library()
source, destination, dtype = sys.argv[1:]
before = peak()
if source.endswith(".flashpack"):
    revert_from_flashpack(source, destination)
else:
    convert_to_flashpack(source, destination, dtype or None)
print(peak() - before)
assert "torch" not in sys.modules
assert "numpy" not in sys.modules
"""


def test_large_files_stream_through(large: Path) -> None:
    packed, halves, back = (
        large.with_name(f"large.{end}") for end in ("flashpack", "half", "back.safetensors")
    )
    for source, destination, dtype, size in (
        (large, packed, "", GIB),
        (large, halves, "float16", GIB // 2),
        (packed, back, "", GIB),
    ):
        growth = int(succeed(python("-c", PEAK, source, destination, dtype)))
        assert growth < 100 * MIB, (source.name, growth)
        assert size < destination.stat().st_size < size + MIB
        if destination is not packed:
            destination.unlink()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=dtype_id)
def test_casts_from_what_only_torch_reads(tmp_path: Path, path: Path, dtype: torch.dtype) -> None:
    given = {
        "a": torch.randn(4, 3).to(torch.float8_e4m3fn),
        "b": torch.randn(3),
        "steps": torch.tensor(2301),
    }
    save_file(given, tmp_path / "fp8.safetensors")
    convert_to_flashpack(tmp_path / "fp8.safetensors", path, dtype_id(dtype))
    expected = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()
    }
    assert_same(flashpack.load_file(path), expected)


def test_a_header_beyond_safetensors_own_limit_is_not_read(tmp_path: Path, path: Path) -> None:
    source = tmp_path / "huge.safetensors"
    with source.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.seek(1 << 28)
        file.write(b"}")
    with pytest.raises(ValueError, match=f"{re.escape(str(source))}: .* 100000001 bytes"):
        convert_to_flashpack(source, path, "float16")


@pytest.mark.parametrize(
    "text", [b"[]", b"7", b"null", b"[" * 100_000], ids=["list", "number", "null", "deep"]
)
def test_a_header_that_is_no_object(tmp_path: Path, path: Path, text: bytes) -> None:
    source = tmp_path / "odd.safetensors"
    source.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ValueError, match=re.escape(f"{source}: is not a sound safetensors file")):
        convert_to_flashpack(source, path, "float16")


def test_revert_refuses_what_is_no_regular_file(packed: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "out.pt"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="is not a regular file") as caught:
        revert_from_flashpack(packed, pipe)
    assert caught.value.filename == str(pipe)
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["n" * 252 + ".pt", "é" * 126 + ".pt"], ids=["ascii", "utf-8"])
def test_revert_to_a_very_long_name(packed: Path, tmp_path: Path, name: str) -> None:
    revert_from_flashpack(packed, tmp_path / name)
    assert_same(torch.load(tmp_path / name), some_tensors())


def test_revert_where_there_are_no_locks(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    revert_from_flashpack(packed, tmp_path / "out.pt")
    assert_same(torch.load(tmp_path / "out.pt"), some_tensors())
