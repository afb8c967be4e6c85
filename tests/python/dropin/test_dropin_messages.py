"""Code written for flashpack 0.4.5 that matches the words of its errors finds them here."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack import deserialization
from helpers import listing, read_footer, read_payload, write_file
from torch import nn


def footer_of(path: Path, **changes: Any) -> Path:
    """A small sound file, its footer changed."""
    flashpack.pack_to_file({"a": torch.ones(3), "b": torch.ones(2)}, path)
    footer = {**read_footer(path), **changes}
    del footer["checksums"]
    return write_file(path, read_payload(path), footer)


def record(name: str, offset: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [2], "offset": offset, "length": 2, **more}


def too_small(path: Path) -> None:
    path.write_bytes(bytes(15))
    flashpack.get_flashpack_file_metadata(path)


def bad_magic(path: Path) -> None:
    path.write_bytes(bytes(100))
    flashpack.load_file(path)


def footer_length(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1000) + b"FLASHPK\0")
    flashpack.load_file(path)


def missing_everything(path: Path) -> None:
    flashpack.pack_to_file({"0.weight": torch.ones(2)}, path)
    flashpack.assign_from_file(nn.Sequential(nn.BatchNorm1d(2)), path, strict=True)


def missing_parameter(path: Path) -> None:
    flashpack.pack_to_file({"bias": torch.ones(2)}, path)
    flashpack.assign_from_file(nn.Linear(3, 2), path)


def missing_buffers(path: Path) -> None:
    norm = nn.BatchNorm1d(2)
    flashpack.pack_to_file(norm, path, name_order=["weight", "bias", "running_var"])
    flashpack.assign_from_file(norm, path, strict_buffers=True)


def other_dtype(path: Path) -> None:
    flashpack.pack_to_file(nn.BatchNorm1d(2), path, torch.float16)
    flashpack.assign_from_file(nn.BatchNorm1d(2), path)


def unknown_names(path: Path) -> None:
    flashpack.pack_to_file({**nn.Linear(3, 2).state_dict(), "x": torch.ones(1), "y.z": torch.ones(1)}, path)
    flashpack.assign_from_file(nn.Linear(3, 2), path)


def iterate(index: list[Mapping[str, Any]]) -> None:
    footer = {"align_bytes": 128, "index": index}
    list(deserialization.iterate_from_flash_tensor(torch.zeros(100), footer))


MESSAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "empty state dict": (r"No tensors to pack", lambda path: flashpack.pack_to_file({}, path)),
    "nothing named": (
        r"No tensors to pack",
        lambda path: flashpack.pack_to_file({"a": torch.ones(1)}, path, name_order=["b"]),
    ),
    "negative alignment": (
        r"align_bytes must be >= 0",
        lambda path: flashpack.pack_to_file({"a": torch.ones(1)}, path, align_bytes=-1),
    ),
    "odd target": (
        r"Unsupported dtype",
        lambda path: flashpack.pack_to_file({"a": torch.ones(1)}, path, "float16"),  # type: ignore[arg-type]
    ),
    "odd dtype in a footer": (
        r"Unsupported dtype",
        lambda path: flashpack.load_file(footer_of(path, target_dtype="float99")),
    ),
    "odd name of a dtype": (r"Unsupported dtype", lambda _: flashpack.utils.string_to_dtype("float99")),
    "no name of a dtype": (r"Unsupported dtype", lambda _: flashpack.utils.dtype_to_string("float32")),  # type: ignore[arg-type]
    "too small": (r"File too small", too_small),
    "bad magic": (r"Bad magic", bad_magic),
    "footer length": (r"Corrupt footer length", footer_length),
    "format": (
        r"Unexpected format.*flashpack_v9",
        lambda path: flashpack.load_file(footer_of(path, format="flashpack_v9")),
    ),
    "unknown names": (r"Could not assign 2 names: \['x', 'y\.z'\]", unknown_names),
    "missing parameter": (r"Missing 1 parameters: \['weight'\]", missing_parameter),
    "missing buffers": (r"Missing 1 buffers: \['running_mean'\]", missing_buffers),
    "missing both": (
        r"Missing 1 parameters and 2 buffers: \['0\.bias'\] \['0\.running_mean'",
        missing_everything,
    ),
    "misaligned": (
        r"misaligned",
        lambda path: flashpack.load_file(footer_of(path, index=[record("a", 1)])),
    ),
    "misaligned in memory": (
        r"1 index entries are misaligned \(e\.g\., a\)",
        lambda _: iterate([record("a", 1)]),
    ),
    "wrong dtype": (r"Error while assigning.* record 'running_mean' is torch.float16", other_dtype),
    "outside": (
        r"Could not get tensor for record 'a': elements 96\.\.104",
        lambda _: iterate([record("a", 96, shape=[8], length=8)]),
    ),
    "wrong shape": (
        r"Could not get tensor for record 'a': shape \[3\]",
        lambda _: iterate([record("a", 0, shape=[3])]),
    ),
    "no device": (
        r"Unsupported device: meta",
        lambda path: deserialization.read_flashpack_file(footer_of(path), "meta"),
    ),
    "strategy": (r"unknown shard strategy", lambda _: deserialization.resolve_shard_strategy("sideways")),
    "macroblock": (
        r"macroblock",
        lambda path: flashpack.load_file(footer_of(path, index=[record("a", 0, macroblock=7)])),
    ),
    "macroblock in memory": (
        r"references invalid macroblock 1",
        lambda _: iterate([record("a", 0, macroblock=1)]),
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(path: Path, case: str) -> None:
    message, provoke = MESSAGES[case]
    with pytest.raises(ValueError, match=message):
        provoke(path)


@pytest.mark.parametrize(
    "content", [b"", b"FLASHPK\0", bytes(16), bytes(8) + b"FLASHPK\0", b"{}" + bytes(1000)]
)
def test_what_is_no_flashpack_file_is_none(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert flashpack.is_flashpack_file(path) is False


@pytest.mark.parametrize("there", ["nothing", "a folder", "nothing in a file"])
def test_where_there_is_no_file_is_no_flashpack_file(path: Path, there: str) -> None:
    if there == "a folder":
        path.mkdir()
    if there == "nothing in a file":
        path.write_bytes(b"")
        path = path / "model.flashpack"
    assert flashpack.is_flashpack_file(path) is False
    with pytest.raises((FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        flashpack.get_flashpack_file_metadata(path)


def test_what_cannot_be_read_is_an_io_error(path: Path) -> None:
    path.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links") as caught:
        flashpack.is_flashpack_file(path)
    assert caught.value.filename == str(path)
    assert listing(path.parent) == {path.name}
