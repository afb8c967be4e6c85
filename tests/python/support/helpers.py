"""Small tools of the tests. None of them trusts FlashPack's own reading or writing of the format."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIXTURES = Path(__file__).parents[2] / "fixtures"
HOSTILE = FIXTURES / "hostile"

MIB = 1 << 20
MAGIC = b"FLASHPK\0"

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    *(torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.bool, torch.complex32, torch.complex64, torch.complex128),
]

# The release has no way to pack these.
NOT_IN_0_4_5 = [torch.float4_e2m1fn_x2]

SAFETENSORS_DTYPES = [
    dtype
    for dtype in DTYPES
    if dtype not in (torch.complex32, torch.complex128, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
]


def dtype_id(dtype: object) -> str:
    """A test id for a dtype."""
    return str(dtype).removeprefix("torch.")


def bits(tensor: Tensor) -> bytes:
    """The elements as bytes, row-major: NaN payloads and the sign of zero count."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return ctypes.string_at(plain.data_ptr(), plain.nbytes) if plain.numel() else b""


def noise(dtype: torch.dtype, shape: Iterable[int] = (), seed: int = 0) -> Tensor:
    """A tensor of random bits: every NaN there is may occur."""
    size = torch.Size(shape)
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, size, generator=generator).to(torch.bool)
    count = size.numel() * dtype.itemsize
    data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(size)


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Same names (in any order), dtypes, shapes and bits."""
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        got = actual[name]
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
        assert bits(got) == bits(tensor), name


def read_footer(path: Path) -> dict[str, Any]:
    """The footer, parsed by hand."""
    data = path.read_bytes()
    length = int.from_bytes(data[-16:-8], "little")
    footer: dict[str, Any] = json.loads(data[-16 - length : -16])
    return footer


def read_payload(path: Path) -> bytes:
    """Everything before the footer."""
    data = path.read_bytes()
    return data[: -16 - int.from_bytes(data[-16:-8], "little")]


def write_file(path: Path, payload: bytes, footer: Mapping[str, Any]) -> Path:
    """A file of this payload and footer, whatever they say."""
    text = json.dumps(footer, separators=(",", ":")).encode()
    path.write_bytes(payload + text + len(text).to_bytes(8, "little") + MAGIC)
    return path


def without_checksums(path: Path) -> Path:
    """Rewrite the file as 0.4.5 would have left it: without our footer keys."""
    footer = read_footer(path)
    del footer["checksums"]
    return write_file(path, read_payload(path), footer)


def record_of(path: Path, name: str) -> dict[str, Any]:
    """The footer's record of this name."""
    (record,) = [record for record in read_footer(path)["index"] if record["name"] == name]
    return record


def place_of(path: Path, name: str) -> tuple[int, int]:
    """First byte in the file and length in bytes of a record."""
    footer = read_footer(path)
    record = record_of(path, name)
    if "macroblocks" in footer:
        block = footer["macroblocks"][record["macroblock"]]
        start, dtype = block["offset_bytes"], block["dtype"]
    else:
        start, dtype = 0, footer["target_dtype"]
    size = getattr(torch, dtype).itemsize
    return start + record["offset"] * size, record["length"] * size


def several_chunks() -> dict[str, Tensor]:
    """Several chunks of payload, several dtypes, a tie."""
    weight = noise(torch.float32, (3 * MIB // 4,), seed=1)
    return {
        "weight": weight,
        "tied": weight,
        "half": noise(torch.float16, (MIB // 2,), seed=2),
        "bytes": noise(torch.uint8, (1000,), seed=3),
        "scalar": noise(torch.float64, seed=4),
        "empty": torch.empty(0, 5),
    }


def state_of_a_linear() -> dict[str, Tensor]:
    """Weight and bias of nn.Linear(3, 2), a tie, and others."""
    weight = torch.randn(2, 3)
    return {
        "fc.weight": weight,
        "tied": weight,
        "fc.bias": torch.randn(2),
        "half": noise(torch.float16, (5,)),
        "count": torch.tensor(2301),
        "empty": torch.empty(0, 4),
    }


def tag_of(error: BaseException) -> dict[str, Any]:
    """The machine-readable end of an op's error."""
    tail = str(error).rpartition(" [flashpack:")[2]
    tag: dict[str, Any] = json.JSONDecoder().raw_decode(tail)[0]
    return tag


def flip_byte(path: Path, offset: int) -> None:
    """Damage one byte of the file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


def bytes_read() -> int:
    """What this process has asked the system to read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def mapped_bytes(path: Path) -> int | None:
    """Bytes of this process's mappings of the file that are in memory; None without a mapping."""
    total, mapped, inside = 0, False, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):
            inside = rest.endswith(str(path))
            mapped |= inside
        elif inside and key == "Rss:":
            total += int(rest.split()[0]) * 1024
    return total if mapped else None


def listing(folder: Path) -> set[str]:
    """The names in a folder, hidden ones included."""
    return set(os.listdir(folder))  # noqa: PTH208 (names, not paths)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to open everything, also when root runs the tests."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def run_python(code: str, *args: object, timeout: float = 120) -> str:
    """Run `code` in a fresh interpreter that sees the same packages; its standard output, stripped."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def block_by_block(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The order that an index lists them in: block after block, blocks by the first tensor of their dtype."""
    dtypes = list(dict.fromkeys(tensor.dtype for tensor in tensors.values()))
    return dict(sorted(tensors.items(), key=lambda item: dtypes.index(item[1].dtype)))


def header_only(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """A safetensors file of this header and payload, whatever they say."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED_SAFETENSORS = {
    "empty": b"",
    "short": b"\1\2\3",
    "header past the end": struct.pack("<Q", 1000) + b"{}",
    "huge header": struct.pack("<Q", 1 << 63) + b"{}",
    "not JSON": struct.pack("<Q", 4) + b"nope",
    "not UTF-8": struct.pack("<Q", 4) + b'{"\xff',
    "a list": struct.pack("<Q", 2) + b"[]",
    "cut payload": header_only({"a": ENTRY}, bytes(7)),
    "payload too long": header_only({"a": ENTRY}, bytes(9)),
    "backward offsets": header_only({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)),
    "overlap": header_only({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)),
    "hole": header_only({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}, bytes(20)),
    "wrong size": header_only({"a": {**ENTRY, "shape": [3]}}, bytes(8)),
    "overflowing shape": header_only({"a": {**ENTRY, "shape": [1 << 62, 1 << 62]}}, bytes(8)),
    "negative shape": header_only({"a": {**ENTRY, "shape": [-2]}}, bytes(8)),
    "unknown dtype": header_only({"a": {**ENTRY, "dtype": "F33"}}, bytes(8)),
    "no dtype": header_only({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "record is a number": header_only({"a": 7}),
}
