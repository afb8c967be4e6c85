"""Conversion: options, destinations, and that no source is ever lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from conversion import save, sharded, snapshot, some_tensors, write_shards
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from helpers import assert_same, listing
from safetensors.torch import load_file, save_file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(some_tensors(), tmp_path / "weights.safetensors", {"format": "pt", "licence": "mit"})
    return tmp_path / "weights.safetensors"


@pytest.fixture
def packed(path: Path) -> Path:
    flashpack.save_file(some_tensors(), path, metadata={"licence": "mit"})
    return path


# Options and destinations.

IGNORED = [
    ({"ignore_names": ["scale"]}, {"scale"}),
    ({"ignore_prefixes": ["block.0.", "st"]}, {"block.0.weight", "block.0.bias", "steps"}),
    ({"ignore_suffixes": [".weight"]}, {"block.0.weight", "block.1.weight"}),
    ({"ignore_names": ("mask",), "ignore_suffixes": ("bias",)}, {"mask", "block.0.bias"}),
    ({"ignore_names": ["block"], "ignore_prefixes": ["weight"], "ignore_suffixes": ["block"]}, set()),
    ({"ignore_names": [], "ignore_prefixes": None}, set()),
]
KINDS = ["safetensors", "bin", "folder", "sharded folder", "state dict"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("options", "left_out"), IGNORED)
def test_ignored_names(
    tmp_path: Path, path: Path, kind: str, options: dict[str, Any], left_out: set[str]
) -> None:
    given: Any = tmp_path / "model.safetensors"
    if kind == "safetensors":
        save_file(some_tensors(), given)
    elif kind == "bin":
        given = tmp_path / "model.bin"
        torch.save(some_tensors(), given)
    elif kind == "folder":
        save_file(some_tensors(), given)
        given = tmp_path
    elif kind == "sharded folder":
        write_shards(tmp_path, "model", sharded(".safetensors"))
        given = tmp_path
    else:
        given = some_tensors()
    convert_to_flashpack(given, path, **options)
    kept = {name: tensor for name, tensor in some_tensors().items() if name not in left_out}
    assert_same(flashpack.load_file(path), kept)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_everything_ignored(tmp_path: Path, path: Path, suffix: str) -> None:
    source = tmp_path / f"a{suffix}"
    save_file({"a": torch.ones(1)}, source) if suffix == ".safetensors" else torch.save(
        {"a": torch.ones(1)}, source
    )
    with pytest.raises(ValueError, match="No tensors to pack"):
        convert_to_flashpack(source, path, ignore_prefixes=["a"])
    assert listing(tmp_path) == {source.name}


@pytest.mark.parametrize("option", ["ignore_names", "ignore_prefixes", "ignore_suffixes"])
def test_a_lone_string_is_no_list_of_names(source: Path, path: Path, option: str) -> None:
    with pytest.raises(ValueError, match=option):
        convert_to_flashpack(source, path, **{option: "scale"})


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("a.safetensors", "a.flashpack"),
        ("a.SAFETENSORS", "a.flashpack"),
        ("a.b.safetensors", "a.b.flashpack"),
        ("a.bin", "a.flashpack"),
        ("a.pt", "a.flashpack"),
        ("a.ckpt", "a.flashpack"),
        ("a.odd", "a.odd.flashpack"),
        ("a", "a.flashpack"),
        (".hidden", ".hidden.flashpack"),
    ],
)
@pytest.mark.parametrize("folder", [False, True], ids=["beside", "into a folder"])
def test_default_destination_of_a_file(tmp_path: Path, name: str, made: str, folder: bool) -> None:
    source = tmp_path / name
    tensors = {"a": torch.ones(2)}
    save(tensors, source)
    before = source.read_bytes()
    expected = tmp_path / made
    if folder:
        expected = tmp_path / "into" / made
        expected.parent.mkdir()
    assert convert_to_flashpack(source, expected.parent if folder else None) == str(expected)
    assert_same(flashpack.load_file(expected), tensors)
    assert source.read_bytes() == before


def test_a_folder_into_a_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    assert convert_to_flashpack(source.parent, tmp_path / "into") == str(tmp_path / "into")
    assert listing(tmp_path / "into") == {"model.flashpack"}


def test_folders_on_the_way_are_made(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "a" / "b" / "c.flashpack"
    convert_to_flashpack(source, there)
    back = tmp_path / "d" / "e" / "f.safetensors"
    revert_from_flashpack(there, back)
    assert_same(load_file(back), some_tensors())


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("m.flashpack", "m.safetensors"),
        ("m.FLASHPACK", "m.safetensors"),
        ("m.odd", "m.odd.safetensors"),
        ("m", "m.safetensors"),
    ],
)
@pytest.mark.parametrize("folder", [False, True], ids=["beside", "into a folder"])
def test_default_destination_of_revert(packed: Path, name: str, made: str, folder: bool) -> None:
    source = packed.rename(packed.with_name(name))
    before = source.read_bytes()
    expected = source.with_name(made)
    if folder:
        expected = source.parent / "into" / made
        expected.parent.mkdir()
    assert revert_from_flashpack(source, expected.parent if folder else None) == str(expected)
    assert_same(load_file(expected), some_tensors())
    assert source.read_bytes() == before


# Never onto the source.


def same_path(source: Path) -> Path:
    return source


def another_spelling(source: Path) -> Path:
    return source.parent / ".." / source.parent.name / source.name


def symbolic_link(source: Path) -> Path:
    link = source.with_name("soft" + source.suffix)
    link.symlink_to(source)
    return link


def hard_link(source: Path) -> Path:
    link = source.with_name("hard" + source.suffix)
    link.hardlink_to(source)
    return link


ALIASES = [same_path, another_spelling, symbolic_link, hard_link]


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".flashpack"])
@pytest.mark.parametrize("dtype", [None, "float8_e5m2"], ids=["native", "torch"])
def test_convert_never_writes_onto_its_source(
    tmp_path: Path, alias: Callable[[Path], Path], suffix: str, dtype: str | None
) -> None:
    source = tmp_path / f"weights{suffix}"
    save(some_tensors(), source)
    destination = alias(source)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="its own source"):
        convert_to_flashpack(source, destination, dtype)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("alias", ALIASES)
def test_convert_never_writes_onto_a_shard(tmp_path: Path, alias: Callable[[Path], Path]) -> None:
    write_shards(tmp_path, "model", sharded(".safetensors"))
    destination = alias(tmp_path / list(sharded(".safetensors"))[1])
    before = snapshot(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"to a file that ends in \.flashpack"):
        convert_to_flashpack(tmp_path, destination)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("suffix", [".flashpack", ".safetensors", ".pt"])
def test_revert_never_writes_onto_its_source(
    packed: Path, alias: Callable[[Path], Path], suffix: str
) -> None:
    source = packed.rename(packed.with_suffix(suffix))
    destination = alias(source)
    before = snapshot(source.parent)
    with pytest.raises(ValueError, match="its own source"):
        revert_from_flashpack(source, destination)
    assert snapshot(source.parent) == before


def test_a_flashpack_file_is_not_converted_in_its_place(packed: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="already a FlashPack file"):
        convert_to_flashpack(packed)
    assert snapshot(tmp_path) == before
