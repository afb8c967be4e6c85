"""safetensors files, loaded as they are by every door: the bytes that safetensors' own loader gives."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file
from helpers import (
    DAMAGED_SAFETENSORS,
    MIB,
    SAFETENSORS_DTYPES,
    assert_same,
    bits,
    dtype_id,
    header_only,
    noise,
)
from processes import python, succeed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def by_handle(path: Path) -> dict[str, Tensor]:
    with flashpack.open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


LOADS: dict[str, Callable[[Path], Mapping[str, Tensor]]] = {
    "mapped": flashpack.load_file,
    "eager": lambda path: flashpack.load_file(path, eager=True),
    "open": by_handle,
    "op load.ignoring": lambda path: dict(
        zip(*torch.ops.flashpack.load.ignoring(torch.ops.flashpack.open(str(path))), strict=True)
    ),
    "blocks": lambda path: dict(iterate_from_flash_tensor(*read_flashpack_file(path))),
    "blocks, eager": lambda path: dict(iterate_from_flash_tensor(*read_flashpack_file(path, eager=True))),
}
EVERY_LOAD = pytest.mark.parametrize("load", LOADS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def odd(start: int) -> bytes:
    """A file whose tensors begin at `start` of 8, in no order of types, one of them without elements."""
    names = {"i8": ("I8", 1), "f64": ("F64", 8), "bf16": ("BF16", 2), "none": ("F32", 0), "c64": ("C64", 8)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, size) in names.items():
        header[name] = {"dtype": dtype, "shape": [3 if size else 0], "data_offsets": [end, end + 3 * size]}
        end += 3 * size
    header["__metadata__"]["pad"] = "." * ((start - len(header_only(header)) - len('"pad": "", ')) % 8)
    payload = bits(noise(torch.uint8, (end,), start))
    content = header_only(header, payload)
    assert (len(content) - end) % 8 == start
    return content


@EVERY_LOAD
@pytest.mark.parametrize("dtype", SAFETENSORS_DTYPES, ids=dtype_id)
def test_every_dtype(source: Path, load: str, dtype: torch.dtype) -> None:
    given = {"a": noise(dtype, (5, 4), 1), "b": noise(dtype, (3,), 2), "none": noise(dtype, (0, 2))}
    save_file(given, source)
    assert_same(LOADS[load](source), load_file(source))


@EVERY_LOAD
@pytest.mark.parametrize("direct", ["0", "1"])
def test_many_tensors_of_many_types(
    source: Path, load: str, direct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHPACK_DIRECT_IO", direct)
    monkeypatch.setenv("FLASHPACK_READ_CHUNK_BYTES", "65536")
    given = {
        f"layer.{number}.{dtype_id(dtype)}": noise(dtype, (number * 331 + 1, 2), number)
        for number in range(9)
        for dtype in SAFETENSORS_DTYPES
    }
    given["large"] = noise(torch.float32, (MIB, 3), 77)
    save_file(given, source)
    assert_same(LOADS[load](source), load_file(source))


@EVERY_LOAD
@pytest.mark.parametrize("start", range(8))
def test_tensors_at_odd_offsets_are_copied_where_they_must(source: Path, load: str, start: int) -> None:
    source.write_bytes(odd(start))
    loaded = LOADS[load](source)
    assert_same(loaded, load_file(source))
    for tensor in loaded.values():
        assert tensor.data_ptr() % tensor.element_size() == 0
        tensor.reshape(-1).fill_(1)  # writable, and nobody else's


def test_mapped_tensors_are_private(source: Path) -> None:
    save_file({"a": torch.zeros(5)}, source)
    before = source.read_bytes()
    flashpack.load_file(source)["a"].fill_(7)
    assert source.read_bytes() == before
    assert flashpack.load_file(source)["a"].sum() == 0


def test_the_content_tells_the_format(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.flashpack")
    flashpack.save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert flashpack.load_file(tmp_path / "model.flashpack")["a"].sum() == 3
    assert flashpack.load_file(tmp_path / "model.safetensors")["a"].sum() == 0


def test_a_handle(source: Path) -> None:
    save_file({"a": noise(torch.int16, (5, 4))}, source, {"licence": "mit"})
    with flashpack.open(source) as file, safe_open(source, "pt") as theirs:
        assert file.keys() == ["a"]
        assert file.metadata() == theirs.metadata() == {"licence": "mit"}
        assert torch.equal(file.get_slice("a")[1:3], theirs.get_slice("a")[1:3])


@pytest.mark.parametrize(
    ("options", "device"),
    [
        *(({}, device) for device in ("cpu", "meta")),
        *(({"eager": True}, device) for device in ("cpu", "meta")),
        *(({"keep_flash_ref_on_model": True}, device) for device in ("cpu", "meta")),
        ({"in_place": True}, "cpu"),
    ],
)
def test_into_a_model(source: Path, options: dict[str, bool], device: str) -> None:
    original = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    save_file(original.state_dict(), source)
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)).to(device)
    flashpack.assign_from_file(model, source, device="cpu", **options)
    assert_same(model.state_dict(), original.state_dict())


def test_a_tied_model_filled_from_a_file_without_ties(source: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 9, bias=False))
        model[1].weight = model[0].weight
        return model

    original, model = tied(), tied()
    save_file({name: tensor.clone() for name, tensor in original.state_dict().items()}, source)
    place = model[0].weight.data_ptr()
    flashpack.assign_from_file(model, source, in_place=True)
    assert model[1].weight is model[0].weight
    assert model[0].weight.data_ptr() == place
    assert_same(model.state_dict(), original.state_dict())


def test_what_a_selection_reads(source: Path) -> None:
    save_file({name: noise(torch.uint8, (MIB,), seed) for seed, name in enumerate("abcd")}, source)
    loaded = flashpack.load_file(source, names=["c"], eager=True)
    assert_same(loaded, {"c": load_file(source)["c"]})
    report = flashpack.last_load()
    assert report is not None and report.bytes == MIB
    assert flashpack.explain(source, names=["c"], eager=True).read_bytes == MIB
    told = flashpack.explain(source)
    assert (told.algorithm, told.mode, told.tensors) == (None, "map", 4)


def test_there_are_no_checksums(source: Path) -> None:
    save_file({"a": torch.ones(3)}, source)
    for load in (flashpack.load_file, flashpack.open, flashpack.explain):
        with pytest.raises(ValueError, match="cannot be verified: the file holds no checksums"):
            load(source, verify=True)
    assert flashpack.verify_file(source).algorithm is None


def test_it_is_still_no_flashpack_file(source: Path) -> None:
    save_file({"a": torch.ones(3)}, source)
    assert not flashpack.is_flashpack_file(source)
    with pytest.raises(flashpack.FlashPackError, match="Bad magic"):
        flashpack.get_flashpack_file_metadata(source)


@EVERY_LOAD
@pytest.mark.parametrize("damage", DAMAGED_SAFETENSORS)
def test_damaged_files_are_refused(source: Path, damage: str, load: str) -> None:
    source.write_bytes(DAMAGED_SAFETENSORS[damage])
    # What an op raises when it is called directly, torch makes a RuntimeError of.
    kind = RuntimeError if load.startswith("op ") else flashpack.FlashPackError
    with pytest.raises(kind, match=re.escape(f"{source}: is not a sound safetensors file")):
        LOADS[load](source)


@pytest.mark.parametrize(
    ("dtype", "shape", "size"), [("F6_E2M3", [4], 3), ("F6_E3M2", [4], 3), ("F8_E4M3FN", [4], 4)]
)
def test_a_dtype_that_torch_has_no_name_for(source: Path, dtype: str, shape: list[int], size: int) -> None:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    source.write_bytes(header_only({"a": entry}, bytes(size)))
    with pytest.raises(ValueError, match=f"{dtype}") as caught:
        flashpack.load_file(source)
    assert str(source) in str(caught.value)


def test_traced(source: Path) -> None:
    """The fake op takes shapes and dtypes from the header."""
    save_file({"a": torch.ones(3, 2), "b": torch.ones(4, dtype=torch.int16)}, source)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def total(x: Tensor) -> Tensor:
        a, b = torch.ops.flashpack.load(str(source), ["a", "b"])
        return x + a.sum() + b.sum()

    assert total(torch.zeros(())).item() == 10


def test_on_the_command_line(source: Path) -> None:
    save_file({"a": torch.ones(3, 2)}, source)
    run = lambda *words: succeed(python("-m", "flashpack", *words))  # noqa: E731
    footer = json.loads(run("metadata", str(source), "--show-index", "--json"))
    assert [record["name"] for record in footer["index"]] == ["a"]
    assert "a [3, 2]" in run("metadata", str(source), "--show-index")
    assert run("verify", str(source)) == ""  # but a warning: there is nothing to compare with
    assert "1 tensors" in run("explain", str(source))
