"""Conversion to FlashPack from every kind of source, and back."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from helpers import (
    DAMAGED_SAFETENSORS,
    DTYPES,
    MIB,
    SAFETENSORS_DTYPES,
    assert_same,
    bits,
    dtype_id,
    flip_byte,
    header_only,
    listing,
    noise,
    place_of,
    read_footer,
)
from processes import python, succeed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

GIB = 1 << 30
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def some_tensors() -> dict[str, Tensor]:
    return {
        "block.0.weight": noise(torch.float32, (6, 5), seed=1),
        "block.0.bias": noise(torch.float16, (6,), seed=2),
        "block.1.weight": noise(torch.bfloat16, (7, 3), seed=3),
        "scale": torch.tensor(0.125),
        "steps": torch.tensor(2301),
        "mask": noise(torch.bool, (9,), seed=4),
        "none": torch.empty(4, 0),
    }


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """As safetensors or, under any other suffix, as torch's own file."""
    if path.suffix.lower() == ".safetensors":
        save_file(dict(tensors), path)
    else:
        with path.open("wb") as file:  # by itself torch.save refuses some names
            torch.save(dict(tensors), file)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones included, with its content."""
    return {name: (folder / name).read_bytes() for name in listing(folder) if (folder / name).is_file()}


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


# Folders and shards.


def write_shards(folder: Path, stem: str, shards: Mapping[str, Mapping[str, Tensor]], **index: Any) -> None:
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for shard, part in shards.items():
        suffix = Path(shard).suffix
        save_file(dict(part), folder / shard) if suffix == ".safetensors" else torch.save(
            dict(part), folder / shard
        )
        weight_map.update(dict.fromkeys(part, shard))
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map, **index}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(content))


def sharded(suffix: str, stem: str = "model") -> dict[str, dict[str, Tensor]]:
    given = some_tensors()
    names = list(given)
    return {
        f"{stem}-0000{number + 1}-of-00003{suffix}": {name: given[name] for name in names[number::3]}
        for number in range(3)
    }


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
    with pytest.raises(ValueError, match="'absent' in "):
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
    assert convert_to_flashpack(source.parent, tmp_path / "into") == str(
        tmp_path / "into" / "model.flashpack"
    )


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
    with pytest.raises(ValueError, match="its own source"):
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


def test_a_flashpack_file_is_not_converted_again(packed: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="already a FlashPack file"):
        convert_to_flashpack(packed, tmp_path / "again.flashpack")
    assert snapshot(tmp_path) == before


# Back again.


def test_revert_keeps_metadata_and_says_format_pt(packed: Path, tmp_path: Path) -> None:
    revert_from_flashpack(packed, tmp_path / "back.safetensors")
    with safe_open(tmp_path / "back.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "licence": "mit"}


def test_revert_says_format_pt_without_other_metadata(path: Path, tmp_path: Path) -> None:
    flashpack.save_file({"a": torch.ones(1)}, path)
    revert_from_flashpack(path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def tied() -> dict[str, Tensor]:
    weight = noise(torch.float32, (8, 4))
    return {"embed.weight": weight, "head.weight": weight, "bias": noise(torch.float32, (8,), seed=1)}


def test_tied_tensors_are_written_twice_to_safetensors(path: Path, tmp_path: Path) -> None:
    flashpack.save_file(tied(), path)
    revert_from_flashpack(path)
    loaded = load_file(tmp_path / "model.safetensors")
    assert_same(loaded, tied())
    assert loaded["embed.weight"].data_ptr() != loaded["head.weight"].data_ptr()


def test_tied_tensors_stay_tied_in_torch_files(path: Path, tmp_path: Path) -> None:
    flashpack.save_file(tied(), path)
    revert_from_flashpack(path, tmp_path / "back.pt")
    loaded = torch.load(tmp_path / "back.pt", weights_only=True)
    assert_same(loaded, tied())
    assert loaded["embed.weight"].data_ptr() == loaded["head.weight"].data_ptr()


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".odd", ""])
def test_every_dtype_to_a_torch_file(path: Path, tmp_path: Path, suffix: str) -> None:
    given = {dtype_id(dtype): noise(dtype, (3, 2), seed=8) for dtype in DTYPES}
    flashpack.save_file(given, path)
    destination = tmp_path / f"back{suffix}"
    revert_from_flashpack(path, destination)
    assert_same(torch.load(destination, weights_only=True), given)


def test_a_torch_file_holds_no_more_than_its_tensors(path: Path, tmp_path: Path) -> None:
    given = {f"{number}": noise(torch.float32, (1000,), number) for number in range(20)}
    flashpack.save_file(given, path)
    revert_from_flashpack(path, tmp_path / "back.pt")
    assert (tmp_path / "back.pt").stat().st_size < 2 * 20 * 4000


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in DTYPES if dtype not in SAFETENSORS_DTYPES], ids=dtype_id
)
def test_what_safetensors_has_no_name_for(path: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Refused naming tensor and type, unless this release of safetensors can read it back."""
    given = {"fine": torch.ones(2), "odd one": noise(dtype, (3,), seed=9)}
    flashpack.save_file(given, path)
    if dtype == torch.complex32:
        with pytest.raises(ValueError, match=r"Unsupported dtype.*complex32.*odd one"):
            revert_from_flashpack(path)
        assert listing(tmp_path) == {path.name}
    else:
        try:
            revert_from_flashpack(path)
        except ValueError as error:
            assert "odd one" in str(error)
            assert listing(tmp_path) == {path.name}
        else:
            assert_same(load_file(tmp_path / "model.safetensors"), given)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["trailer", "footer"])
def test_revert_refuses_an_unsound_file(packed: Path, tmp_path: Path, suffix: str, damage: str) -> None:
    size = packed.stat().st_size
    flip_byte(packed, size - (1 if damage == "trailer" else 40))
    destination = tmp_path / f"back{suffix}"
    destination.write_bytes(b"the old file")
    before = snapshot(tmp_path)
    with pytest.raises(flashpack.FlashPackError, match=re.escape(str(packed))):
        revert_from_flashpack(packed, destination)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_revert_refuses_a_damaged_payload(packed: Path, tmp_path: Path, suffix: str) -> None:
    """Damage must not be laundered into a file without checksums."""
    flip_byte(packed, place_of(packed, "block.0.weight")[0])
    with pytest.raises(flashpack.ChecksumError, match=re.escape(str(packed))):
        revert_from_flashpack(packed, tmp_path / f"back{suffix}")
    assert listing(tmp_path) == {packed.name}


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
from flashpack import _native
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
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(1 << 28)
    with pytest.raises(ValueError, match=f"{re.escape(str(source))}: .* 100000001 bytes"):
        convert_to_flashpack(source, path, "float16")


@pytest.mark.parametrize(
    "text", [b"[]", b"7", b"null", b"[" * 100_000], ids=["list", "number", "null", "deep"]
)
def test_a_header_that_is_no_object(tmp_path: Path, path: Path, text: bytes) -> None:
    source = tmp_path / "odd.safetensors"
    source.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ValueError, match=re.escape(f"{source}: not a safetensors file")):
        convert_to_flashpack(source, path, "float16")


def test_revert_refuses_what_is_no_regular_file(packed: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "out.pt"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="is not a regular file") as caught:
        revert_from_flashpack(packed, pipe)
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(pipe))
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
