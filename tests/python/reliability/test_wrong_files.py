"""Files that are not what their names say: one sentence tells what they are and what to do."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import flashpack
import numpy as np
import pytest
import safetensors.torch
import torch
from flashpack._core import native as _native
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from helpers import write_file

STATE = {"weight": torch.arange(64, dtype=torch.float32), "bias": torch.ones(3)}


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def zipped() -> bytes:
    def write(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("readme.txt", "nothing")

    return written(write)


SAFETENSORS = safetensors.torch.save(STATE)
TORCH = written(lambda stream: torch.save(STATE, stream))
LEGACY = written(lambda stream: torch.save(STATE, stream, _use_new_zipfile_serialization=False))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 4976698672\n"
# What the message must say of it: what it is, and what to do.
WRONG: Mapping[str, tuple[bytes, tuple[str, str]]] = {
    "LFS pointer": (POINTER, ("Git LFS pointer to a file of 4976698672 bytes", "git lfs pull")),
    "web page": (b"<!DOCTYPE html>\n<html><title>Sign in</title></html>", ("HTML page", "download it again")),
    "JSON answer": (b'{"error": "Repository not found"}', ("Repository not found", "download it again")),
    "text answer": (b"Entry not found", ("Entry not found", "download it again")),
    "XML answer": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', ("XML", "download it again")),
    "gguf": (b"GGUF\3\0\0\0" + bytes(range(200)), ("GGUF", "safetensors")),
    "gzip": (gzip.compress(SAFETENSORS), ("gzip", "decompress")),
    "zip": (zipped(), ("ZIP archive", "unpack")),
    "pickle": (pickle.dumps({"weight": [1.0]}), ("pickle", "save_file")),
    "npz": (written(lambda stream: np.savez(stream, a=np.ones(3))), ("NumPy", "numpy.load")),
    "cut torch file": (TORCH[: len(TORCH) // 2], ("without its end", "download it again")),
    "zeros": (bytes(70_000), ("zeros", "download it again")),
}
FROM_TORCH = {"torch": TORCH, "torch before 1.6": LEGACY}


@pytest.fixture(params=[".flashpack", ".safetensors", ""])
def wrong(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"model{request.param}"


READERS: Mapping[str, Callable[[Path], object]] = {
    "load": flashpack.load_file,
    "open": lambda path: flashpack.open(path),
    "assign": lambda path: flashpack.assign_from_file(torch.nn.Linear(2, 2), path),
    "metadata": flashpack.get_flashpack_file_metadata,
    "verify": flashpack.verify_file,
    "revert": revert_from_flashpack,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", [*WRONG, *FROM_TORCH])
def test_a_wrong_file_is_recognised_by_all_who_read(wrong: Path, kind: str, reader: str) -> None:
    content, words = WRONG[kind] if kind in WRONG else (FROM_TORCH[kind], ("torch.save", "flashpack convert"))
    wrong.write_bytes(content)
    with pytest.raises(flashpack.FlashPackError) as caught:
        READERS[reader](wrong)
    message = str(caught.value)
    assert message.startswith(f"{wrong}: ")
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_source_is_recognised_before_a_conversion(kind: str, suffix: str, tmp_path: Path) -> None:
    content, words = WRONG[kind]
    source = tmp_path / f"model{suffix}"
    source.write_bytes(content)
    with pytest.raises(ValueError, match=r"is (a|an|compressed|unfinished|text|JSON)\b") as caught:
        convert_to_flashpack(source, tmp_path / "out.flashpack")
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "out.flashpack").exists()


@pytest.mark.parametrize("content", FROM_TORCH.values(), ids=FROM_TORCH)
def test_what_torch_reads_still_converts(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    made = convert_to_flashpack(tmp_path / "model.bin")
    assert all(torch.equal(STATE[name], tensor) for name, tensor in flashpack.load_file(made).items())


@pytest.mark.parametrize(("name", "content", "words"), [
    ("m.bin", SAFETENSORS, "ends in .safetensors"),
    ("m.safetensors", TORCH, "file of torch.save"),
    ("m.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}', "convert the folder"),
])  # fmt: skip
def test_a_source_under_a_name_of_another_kind(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        convert_to_flashpack(tmp_path / name, tmp_path / "out.flashpack")


@pytest.mark.parametrize("suffix", [".safetensors", ".flashpack"])
@pytest.mark.parametrize("kept", [9, 40, len(SAFETENSORS) - 1])
def test_a_cut_safetensors_file_says_how_much_is_there(kept: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(SAFETENSORS[:kept])
    header = 8 + int.from_bytes(SAFETENSORS[:8], "little")
    with pytest.raises(flashpack.FlashPackError, match="truncated") as caught:
        flashpack.load_file(path)
    expected = len(SAFETENSORS) if kept > header else header
    assert str(kept) in str(caught.value)
    assert str(expected) in str(caught.value)


def test_a_cut_flashpack_file_says_that_its_end_may_be_missing(tmp_path: Path) -> None:
    flashpack.save_file(STATE, tmp_path / "m.flashpack")
    (tmp_path / "m.flashpack").write_bytes((tmp_path / "m.flashpack").read_bytes()[:300])
    with pytest.raises(flashpack.FlashPackError, match=r"Bad magic.*truncated"):
        flashpack.load_file(tmp_path / "m.flashpack")


@pytest.mark.parametrize(
    ("version", "newer"), [("flashpack_v6", True), ("flashpack_v2", False), ("x", False)]
)
def test_a_newer_format_asks_for_an_upgrade(version: str, newer: bool, tmp_path: Path) -> None:
    write_file(tmp_path / "m.flashpack", b"", {"format": version, "index": []})
    with pytest.raises(flashpack.FlashPackError, match="Unexpected format") as caught:
        flashpack.load_file(tmp_path / "m.flashpack")
    assert ("pip install --upgrade flashpack" in str(caught.value)) is newer


def test_the_command_line_of_other_languages_says_it_too(tmp_path: Path) -> None:
    """The C interface alone, as programs that are not in Python use it."""
    (tmp_path / "m.flashpack").write_bytes(POINTER)
    with pytest.raises(flashpack.FlashPackError, match="Git LFS pointer"):
        _native.call("index", path=str(tmp_path / "m.flashpack"))
