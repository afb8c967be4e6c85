"""Conversion of folders, shards, torch's own files, models and state dicts."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import flashpack
import pytest
import torch
from conversion import sharded, some_tensors, write_shards
from flashpack.commands import convert_to_flashpack
from helpers import assert_same, listing, noise
from safetensors.torch import save_file
from torch import nn


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(some_tensors(), tmp_path / "weights.safetensors", {"format": "pt", "licence": "mit"})
    return tmp_path / "weights.safetensors"


# Folders and shards.


@pytest.mark.parametrize(
    ("stem", "suffix"),
    [
        ("model", ".safetensors"),
        ("diffusion_pytorch_model", ".safetensors"),
        ("pytorch_model", ".bin"),
        ("diffusion_pytorch_model", ".bin"),
    ],
)
def test_a_sharded_folder(tmp_path: Path, stem: str, suffix: str) -> None:
    folder = tmp_path / "folder"
    write_shards(folder, stem, sharded(suffix, stem))
    (folder / "config.json").write_text("{}")
    assert convert_to_flashpack(folder) == str(folder / "model.flashpack")
    assert_same(flashpack.load_file(folder / "model.flashpack"), some_tensors())


def test_the_working_directory(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert convert_to_flashpack(".") == "model.flashpack"
    assert_same(flashpack.load_file("model.flashpack"), some_tensors())
    with pytest.raises(FileNotFoundError, match=r"No \.safetensors or \.bin weights"):
        convert_to_flashpack("/")


def test_shards_of_a_variant(tmp_path: Path, path: Path) -> None:
    write_shards(tmp_path / "folder", "model", sharded(".safetensors"))
    shards = {"model.fp16-00001-of-00001.safetensors": {"a": torch.ones(2)}}
    write_shards(tmp_path / "folder", "spare", shards)
    (tmp_path / "folder" / "spare.safetensors.index.json").rename(
        tmp_path / "folder" / "model.safetensors.index.fp16.json"
    )
    convert_to_flashpack(tmp_path / "folder", path, variant="fp16")
    assert_same(flashpack.load_file(path), {"a": torch.ones(2)})


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "diffusion_pytorch_model.safetensors", "odd.safetensors", "pytorch_model.bin"],
)
def test_a_folder_with_one_file(tmp_path: Path, path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(some_tensors(), folder / name) if name.endswith("s") else torch.save(
        some_tensors(), folder / name
    )
    (folder / "tokenizer.json").write_text("{}")
    convert_to_flashpack(str(folder), str(path))
    assert_same(flashpack.load_file(path), some_tensors())


def test_safetensors_go_before_pickles(tmp_path: Path, path: Path) -> None:
    (tmp_path / "folder").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "folder" / "model.safetensors")
    (tmp_path / "folder" / "pytorch_model.bin").write_bytes(b"never looked at")
    convert_to_flashpack(tmp_path / "folder", path)
    assert flashpack.load_file(path)["a"].item() == 1


def test_two_files_of_one_kind_are_ambiguous(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"one\.safetensors, two\.safetensors"):
        convert_to_flashpack(tmp_path)
    assert listing(tmp_path) == {"one.safetensors", "two.safetensors"}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("absolute", [False, True], ids=["parent", "absolute"])
def test_an_index_that_reaches_outside_is_refused(
    tmp_path: Path, path: Path, suffix: str, absolute: bool
) -> None:
    folder = tmp_path / "folder"
    write_shards(folder, "model", sharded(suffix))
    shard = next(iter(sharded(suffix)))
    (folder / shard).rename(tmp_path / shard)
    outside = str(tmp_path / shard) if absolute else f"../{shard}"
    index = folder / f"model{suffix}.index.json"
    index.write_text(index.read_text().replace(shard, outside))
    with pytest.raises(ValueError, match="not a plain file name") as caught:
        convert_to_flashpack(folder, path)
    assert outside in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize("shard", ["", ".", "..", "a/../b.safetensors", "a\\b.safetensors", "C:x", "nul\0"])
def test_other_names_that_are_no_file_names(tmp_path: Path, shard: str) -> None:
    content = {"weight_map": {"a": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not a plain file name"):
        convert_to_flashpack(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        "\x00",
        "é".encode("latin1"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, content: str | bytes) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(f"{index}: not a valid index")):
        convert_to_flashpack(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_missing_shard(tmp_path: Path, path: Path, suffix: str) -> None:
    folder = tmp_path / "folder"
    shards = sharded(suffix)
    write_shards(folder, "model", shards)
    gone = list(shards)[1]
    (folder / gone).unlink()
    with pytest.raises(ValueError, match="1 of 3 shards are missing") as caught:
        convert_to_flashpack(folder, path)
    assert gone in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize("dtype", [None, "float8_e5m2"], ids=["native", "torch"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_tensor_missing_from_its_shard(tmp_path: Path, path: Path, suffix: str, dtype: str | None) -> None:
    folder = tmp_path / "folder"
    shards = sharded(suffix)
    promised = {name: shard for shard, part in shards.items() for name in part}
    write_shards(folder, "model", shards, weight_map={**promised, "absent": next(iter(shards))})
    with pytest.raises(ValueError, match=r"""['"]absent['"] in """):
        convert_to_flashpack(folder, path, dtype)
    assert not path.exists()


@pytest.mark.parametrize("dtype", [None, "float8_e5m2"], ids=["native", "torch"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_tensor_in_two_shards(tmp_path: Path, path: Path, suffix: str, dtype: str | None) -> None:
    folder = tmp_path / "folder"
    shards = sharded(suffix)
    for part in shards.values():
        part["twice"] = torch.ones(2)
    write_shards(folder, "model", shards)
    with pytest.raises(ValueError, match="twice"):
        convert_to_flashpack(folder, path, dtype)
    assert not path.exists()


# torch's own files.


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".odd"])
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old"])
def test_a_torch_file(tmp_path: Path, path: Path, suffix: str, new_format: bool) -> None:
    source = tmp_path / f"weights{suffix}"
    torch.save(some_tensors(), source, _use_new_zipfile_serialization=new_format)
    convert_to_flashpack(source, path)
    assert_same(flashpack.load_file(path), some_tensors())


def test_a_nested_state_dict(tmp_path: Path, path: Path) -> None:
    torch.save({"state_dict": some_tensors(), "epoch": 7}, tmp_path / "a.ckpt")
    convert_to_flashpack(tmp_path / "a.ckpt", path)
    assert_same(flashpack.load_file(path), some_tensors())


def test_tied_tensors_of_a_torch_file_are_stored_once(tmp_path: Path, path: Path) -> None:
    tied = noise(torch.float32, (64, 64))
    torch.save({"a": tied, "b": tied}, tmp_path / "a.pt")
    convert_to_flashpack(tmp_path / "a.pt", path)
    loaded = flashpack.load_file(path)
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
    assert_same(loaded, {"a": tied, "b": tied})


def test_views_in_a_torch_file(tmp_path: Path, path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    given = {"column": whole[:, 2], "rows": whole[1:3], "transposed": whole.T}
    torch.save(given, tmp_path / "a.pt")
    convert_to_flashpack(tmp_path / "a.pt", path)
    assert_same(flashpack.load_file(path), given)


class Payload:
    """Unpickling it runs code."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".odd"])
@pytest.mark.parametrize("form", ["pickle", "zip", "old"])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, path: Path, suffix: str, form: str) -> None:
    source, proof = tmp_path / f"evil{suffix}", tmp_path / "ran"
    content = {"a": torch.ones(1), "b": Payload(str(proof))}
    if form == "pickle":
        source.write_bytes(pickle.dumps(Payload(str(proof))))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=re.escape(str(source))):
        convert_to_flashpack(source, path)
    assert listing(tmp_path) == {source.name}


@pytest.mark.parametrize(
    "content", [[torch.ones(1)], 7, torch.ones(1), {"a": 1}, {"a": "text"}, {1: torch.ones(1)}]
)
def test_a_torch_file_without_a_state_dict(tmp_path: Path, path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"not a state dict|not a tensor|must be strings"):
        convert_to_flashpack(tmp_path / "a.pt", path)
    assert listing(tmp_path) == {"a.pt"}


@pytest.mark.parametrize("content", [b"", b"PK\3\4 but no more", b"\x80\x04N.", b"text that is no pickle"])
def test_a_torch_file_that_is_none(tmp_path: Path, path: Path, content: bytes) -> None:
    source = tmp_path / "a.bin"
    source.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(source))):
        convert_to_flashpack(source, path)
    assert listing(tmp_path) == {"a.bin"}


def test_a_truncated_torch_file(tmp_path: Path, path: Path) -> None:
    source = tmp_path / "a.pt"
    torch.save(some_tensors(), source)
    os.truncate(source, source.stat().st_size // 2)
    with pytest.raises(ValueError, match=re.escape(str(source))):
        convert_to_flashpack(source, path)
    assert listing(tmp_path) == {"a.pt"}


# Models and state dicts.


def test_a_model(path: Path) -> None:
    model = nn.Linear(4, 3)
    assert convert_to_flashpack(model, path, "bfloat16", ignore_names=["bias"]) == str(path)
    assert_same(flashpack.load_file(path), {"weight": model.weight.detach().bfloat16()})


def test_a_state_dict(path: Path) -> None:
    convert_to_flashpack(some_tensors(), path)
    assert_same(flashpack.load_file(path), some_tensors())


def test_a_model_needs_a_destination() -> None:
    with pytest.raises(ValueError, match="destination_path is required"):
        convert_to_flashpack(nn.Linear(1, 1))
