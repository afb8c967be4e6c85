"""Packing: what is stored, where it lies, what is refused, and what failure leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from helpers import (
    DTYPES,
    MIB,
    assert_same,
    bits,
    dtype_id,
    listing,
    noise,
    place_of,
    read_footer,
    read_payload,
)
from torch import Tensor, nn

SHAPES = [(7, 3), (2, 1, 3), (5,), (), (0,), (3, 0, 2), (1, 1, 1, 1, 1)]


def offsets(path: Path) -> dict[str, int]:
    return {record["name"]: record["offset"] for record in read_footer(path)["index"]}


# What is stored


@pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_every_dtype_in_every_shape(dtype: torch.dtype, eager: bool, path: Path) -> None:
    tensors = {f"{number}": noise(dtype, shape, number) for number, shape in enumerate(SHAPES)}
    flashpack.save_file(tensors, path)
    assert read_footer(path)["target_dtype"] == dtype_id(dtype)
    assert_same(flashpack.load_file(path, eager=eager, verify=True), tensors)


def test_all_dtypes_in_one_file(path: Path) -> None:
    tensors = {f"{dtype_id(dtype)}.{shape}": noise(dtype, shape) for dtype in DTYPES for shape in SHAPES}
    flashpack.save_file(tensors, path)
    footer = read_footer(path)
    assert footer["format"] == "flashpack_v4"
    assert {block["dtype"] for block in footer["macroblocks"]} == {dtype_id(dtype) for dtype in DTYPES}
    assert all(block["offset_bytes"] % 4096 == 0 for block in footer["macroblocks"])
    assert_same(flashpack.load_file(path, eager=True), tensors)


@pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])
@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.empty(0)},
        {"a": torch.empty(0), "b": torch.empty(2, 0, 3)},
        {"a": torch.empty(0), "b": torch.empty(0, dtype=torch.int64)},
    ],
    ids=["one", "two", "two dtypes"],
)
def test_nothing_but_empty_tensors(tensors: dict[str, Tensor], eager: bool, path: Path) -> None:
    flashpack.save_file(tensors, path)
    assert read_payload(path) == b""
    assert_same(flashpack.load_file(path, eager=eager, verify=True), tensors)


def negated_view() -> Tensor:
    imaginary = noise(torch.complex64, (6, 4)).conj().imag
    assert imaginary.is_neg()
    return imaginary


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: noise(torch.float32, (5, 7)).t(),
    "permuted": lambda: noise(torch.int16, (2, 3, 4)).permute(2, 0, 1),
    "sliced": lambda: noise(torch.float64, (9, 9))[1::2, ::3],
    "offset": lambda: noise(torch.bfloat16, (100,))[33:],
    "flipped": lambda: noise(torch.uint8, (10,)).flip(0),
    "expanded": lambda: noise(torch.float32, (3, 1)).expand(3, 8),
    "expanded scalar": lambda: noise(torch.float16).expand(4, 4),
    "channels last": lambda: noise(torch.float32, (2, 3, 4, 5)).to(memory_format=torch.channels_last),
    "channels last 3d": lambda: noise(torch.float16, (2, 3, 2, 2, 2)).to(
        memory_format=torch.channels_last_3d
    ),
    "overlapping": lambda: noise(torch.int32, (10,)).as_strided((4, 4), (2, 1)),
    "conjugated": lambda: noise(torch.complex64, (4, 4)).conj(),
    "conjugated half": lambda: noise(torch.complex64, (4, 4)).to(torch.complex32).conj(),
    "conjugate transposed": lambda: noise(torch.complex128, (3, 5)).mH,
    "slice of a conjugate": lambda: noise(torch.complex64, (8, 8)).conj()[2:5, 1::2],
    "negated": negated_view,
    "slice of a negated": lambda: negated_view()[1::2, 1:],
    "conjugated and negated": lambda: torch._neg_view(noise(torch.complex64, (4,)).conj()),
    "real part": lambda: noise(torch.complex64, (4, 4)).real,
    "parameter": lambda: nn.Parameter(noise(torch.float32, (3, 3))),
    "of a graph": lambda: torch.ones(3, requires_grad=True) * 2,
    "uint16 transposed": lambda: noise(torch.uint16, (5, 7)).t(),
    "float8 transposed": lambda: noise(torch.float8_e8m0fnu, (5, 7)).t(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout_is_stored_row_major(layout: str, path: Path) -> None:
    tensor = LAYOUTS[layout]()
    flashpack.save_file({"other": torch.ones(1000), "tensor": tensor}, path)
    loaded = flashpack.load_file(path)["tensor"]
    assert_same({"": loaded}, {"": tensor})
    assert loaded.is_contiguous()
    assert not loaded.requires_grad
    assert not loaded.is_conj()
    assert not loaded.is_neg()


def test_inference_tensors_pack(path: Path) -> None:
    with torch.inference_mode():
        tensor = torch.arange(6.0).reshape(2, 3).t()
        flashpack.save_file({"a": tensor}, path)
    assert_same(flashpack.load_file(path), {"a": tensor})


def test_a_subclass_without_dispatch_packs_as_its_data(path: Path) -> None:
    class Named(Tensor):
        pass

    flashpack.save_file({"a": torch.arange(4.0).as_subclass(Named)}, path)
    assert_same(flashpack.load_file(path), {"a": torch.arange(4.0)})


def test_a_model_packs_as_its_state_dict(path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.register_buffer("scratch", torch.ones(3), persistent=False)
    flashpack.pack_to_file(model, path)
    assert_same(flashpack.load_file(path), model.state_dict())


# Ties


@pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])
def test_tied_tensors_are_stored_once_and_stay_tied(eager: bool, path: Path) -> None:
    weight = noise(torch.float32, (64, 1024))
    tensors = {"a": weight, "b": weight, "c": weight.view(-1), "d": weight.view(1024, 64)}
    flashpack.save_file(tensors, path)
    assert set(offsets(path).values()) == {0}
    assert len(read_payload(path)) == weight.nbytes
    loaded = flashpack.load_file(path, eager=eager)
    assert_same(loaded, tensors)
    assert len({tensor.data_ptr() for tensor in loaded.values()}) == 1


def test_what_only_overlaps_is_stored_apart(path: Path) -> None:
    base = noise(torch.float32, (64,))
    tensors = {
        "whole": base,
        "head": base[:32],
        "middle": base[16:48],
        "transposed": base.view(8, 8).t(),
        "ints": base.view(torch.int32),
        "halves": base.view(torch.float16),
        "every other": base[::2],
    }
    flashpack.save_file(tensors, path)
    places = {place_of(path, name) for name in tensors}
    assert len(places) == len(tensors)
    loaded = flashpack.load_file(path)
    assert_same(loaded, tensors)
    loaded["head"].zero_()
    assert bits(loaded["whole"]) == bits(base)


def test_a_conjugate_view_is_not_tied_to_its_base(path: Path) -> None:
    base = noise(torch.complex64, (8,))
    tensors = {"base": base, "conjugate": base.conj(), "negated": torch._neg_view(base), "again": base}
    flashpack.save_file(tensors, path)
    places = offsets(path)
    assert places["base"] == places["again"]
    assert len({places["base"], places["conjugate"], places["negated"]}) == 3
    assert_same(flashpack.load_file(path), tensors)


def test_equal_strided_views_are_tied(path: Path) -> None:
    base = noise(torch.float32, (8, 8))
    tensors = {"one": base.t(), "two": base.t(), "three": base[:, :4], "four": base[:, :4]}
    flashpack.save_file(tensors, path)
    places = offsets(path)
    assert places["one"] == places["two"]
    assert places["three"] == places["four"]
    assert_same(flashpack.load_file(path), tensors)


def test_equal_values_in_other_memory_are_not_tied(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(64), "b": torch.ones(64)}, path)
    loaded = flashpack.load_file(path)
    loaded["a"].zero_()
    assert loaded["b"].eq(1).all()


def test_empty_tensors_are_never_tied(path: Path) -> None:
    tensors = {"a": torch.empty(0), "b": torch.empty(0, 3), "c": torch.ones(2)[:0]}
    flashpack.save_file({**tensors, "d": torch.ones(2)}, path)
    assert_same(flashpack.load_file(path), {**tensors, "d": torch.ones(2)})


def test_ties_survive_loading_and_saving_again(path: Path, tmp_path: Path) -> None:
    weight = noise(torch.float32, (32, 8))
    flashpack.save_file({"a": weight, "b": weight, "c": weight.clone()}, path)
    again = tmp_path / "again.flashpack"
    flashpack.save_file(flashpack.load_file(path), again)
    assert again.read_bytes() == path.read_bytes()


# Casting


def test_target_dtype_casts_floating_tensors_only(path: Path) -> None:
    floats = {
        "f64": torch.tensor([1 / 3, 1e300, -0.0, math.nan, math.inf], dtype=torch.float64),
        "f32": torch.randn(7, 3),
        "bf16": torch.randn(5).to(torch.bfloat16),
        "f16": torch.randn(5).to(torch.float16),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 2),
        "strided": torch.randn(4, 6).t(),
    }
    others = {
        "steps": torch.tensor(2301),
        "mask": torch.tensor([True, False]),
        "bytes": noise(torch.uint8, (9,)),
        "wave": noise(torch.complex64, (3,)),
    }
    flashpack.pack_to_file({**floats, **others}, path, target_dtype=torch.float16)
    loaded = flashpack.load_file(path)
    assert_same(loaded, {**{name: tensor.half() for name, tensor in floats.items()}, **others})
    assert loaded["steps"].item() == 2301


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=dtype_id)
def test_ties_survive_a_cast(dtype: torch.dtype, path: Path) -> None:
    weight = torch.randn(16, 4)
    flashpack.pack_to_file({"a": weight, "b": weight, "c": weight.flatten()}, path, dtype)
    assert set(offsets(path).values()) == {0}
    loaded = flashpack.load_file(path)
    assert_same(loaded, {"a": weight.to(dtype), "b": weight.to(dtype), "c": weight.flatten().to(dtype)})
    assert loaded["a"].data_ptr() == loaded["c"].data_ptr()


def test_a_cast_can_merge_two_dtypes_into_one_block(path: Path) -> None:
    flashpack.pack_to_file({"a": torch.ones(3), "b": torch.ones(2).double()}, path, torch.bfloat16)
    footer = read_footer(path)
    assert (footer["format"], footer["target_dtype"]) == ("flashpack_v3", "bfloat16")


def test_packing_does_not_change_the_model(path: Path) -> None:
    model = nn.Linear(4, 4)
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    flashpack.pack_to_file(model, path, torch.float16)
    assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == before
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.bool, torch.complex64, torch.float4_e2m1fn_x2, "float16"]
)
def test_a_target_that_is_no_floating_dtype_is_refused(dtype: Any, path: Path) -> None:
    with pytest.raises(ValueError, match="Unsupported dtype"):
        flashpack.pack_to_file({"a": torch.ones(2)}, path, dtype)
    assert listing(path.parent) == set()


# Order and alignment


def test_default_order_is_largest_first_then_as_given_within_a_block(path: Path) -> None:
    tensors = {
        "b": torch.ones(2),
        "z": torch.ones(9),
        "a": torch.ones(2),
        "e": torch.empty(0),
        "i": noise(torch.int8, (9,)),
    }
    flashpack.save_file(tensors, path)
    assert list(flashpack.load_file(path)) == ["z", "b", "a", "e", "i"]
    assert [block["dtype"] for block in read_footer(path)["macroblocks"]] == ["float32", "int8"]


def test_name_order_selects_and_orders(path: Path) -> None:
    tensors = {"small": torch.ones(2), "large": torch.ones(9), "left out": torch.ones(3)}
    flashpack.pack_to_file(tensors, path, name_order=["small", "nobody", "large", "small"])
    assert list(flashpack.load_file(path)) == ["small", "large"]
    assert offsets(path)["small"] == 0


def test_name_order_may_be_an_iterator(path: Path) -> None:
    flashpack.pack_to_file({"a": torch.ones(1), "b": torch.ones(2)}, path, name_order=iter(["a", "b"]))
    assert list(flashpack.load_file(path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("tensors", "order"), [({}, None), ({"a": torch.ones(1)}, []), ({"a": torch.ones(1)}, ["b"])]
)
def test_nothing_to_pack(tensors: dict[str, Tensor], order: list[str] | None, path: Path) -> None:
    with pytest.raises(ValueError, match="No tensors to pack"):
        flashpack.pack_to_file(tensors, path, name_order=order)
    with pytest.raises(ValueError, match="No tensors to pack"):
        flashpack.pack_to_file(nn.ReLU(), path)
    assert listing(path.parent) == set()


@pytest.mark.parametrize("align", [0, 1, 3, 7, 12, 16, 64, 100, 128, 4096])
def test_every_alignment(align: int, path: Path) -> None:
    dtypes = [torch.float32, torch.float16, torch.uint8, torch.complex128]
    tensors = {
        f"{dtype_id(dtype)}.{count}": noise(dtype, (count,)) for dtype in dtypes for count in (5, 3, 1)
    }
    flashpack.pack_to_file(tensors, path, align_bytes=align)
    footer = read_footer(path)
    assert footer["align_bytes"] == align
    for record in footer["index"]:
        item = getattr(torch, footer["macroblocks"][record["macroblock"]]["dtype"]).itemsize
        assert record["offset"] % max(align // math.gcd(align, item), 1) == 0
    assert_same(flashpack.load_file(path, eager=False), tensors)
    assert_same(flashpack.load_file(path, eager=True), tensors)


def test_no_alignment_packs_densely(path: Path) -> None:
    flashpack.pack_to_file({"a": torch.ones(5), "b": torch.ones(3)}, path, align_bytes=0)
    assert offsets(path) == {"a": 0, "b": 5}
    assert len(read_payload(path)) == 32


@pytest.mark.parametrize(("align", "message"), [(-1, "align_bytes must be >= 0"), (1 << 70, "align_bytes")])
def test_impossible_alignments(align: int, message: str, path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        flashpack.pack_to_file({"a": torch.ones(2)}, path, align_bytes=align)
    assert listing(path.parent) == set()


# Metadata and names


def test_metadata_comes_back(path: Path) -> None:
    metadata = {
        "format": "pt",
        "": "empty key",
        "ключ": "值 \U0001f512",
        'quote"\\': "line\nbreak\0nul",
        "e": "",
    }
    flashpack.save_file({"a": torch.ones(1)}, path, metadata=metadata)
    with flashpack.open(path) as file:
        assert file.metadata() == metadata
    assert flashpack.get_flashpack_file_metadata(path)["metadata"] == metadata
    assert read_footer(path)["metadata"] == metadata


def test_no_metadata_no_key(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(1)}, path, metadata={})
    assert "metadata" not in read_footer(path)


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": None}, {"a": "\ud800"}])
def test_metadata_must_be_text(metadata: Any, path: Path) -> None:
    with pytest.raises(ValueError, match="metadata must"):
        flashpack.save_file({"a": torch.ones(1)}, path, metadata=metadata)
    assert listing(path.parent) == set()


def test_odd_names(path: Path) -> None:
    names = ["", " ", "a.b.c", "ü", "\0", '\n"\\', "\U0001f512", "x" * 5000, "[flashpack:{}]", "\u2028"]
    tensors = {name: torch.tensor([number]) for number, name in enumerate(names)}
    flashpack.save_file(tensors, path)
    assert_same(flashpack.load_file(path), tensors)
    assert_same(flashpack.load_file(path, names=names[::-1]), tensors)


def test_the_file_takes_no_more_disk_than_its_bytes(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(10)}, path)
    assert path.stat().st_blocks * 512 <= 64 << 10  # a block of any file system, far from a reserve


def test_the_file_says_how_to_check_it(path: Path) -> None:
    flashpack.save_file({"a": noise(torch.uint8, (3 * MIB + 5,))}, path)
    checksums = read_footer(path)["checksums"]
    assert (checksums["algorithm"], checksums["chunk_bytes"]) == ("xxh3_64", MIB)
    assert len(checksums["digests"]) == 4 * 16
    report = flashpack.verify_file(path)
    assert (report.payload_bytes, report.verified_bytes) == (3 * MIB + 5, 3 * MIB + 5)
    assert report.algorithm == "xxh3_64"


def test_packing_twice_gives_the_same_file(path: Path) -> None:
    tensors = {"a": noise(torch.float32, (100,)), "b": noise(torch.int8, (3,))}
    flashpack.save_file(tensors, path, {"k": "v", "a": "b"})
    first = path.read_bytes()
    flashpack.save_file(tensors, path, {"a": "b", "k": "v"})
    assert path.read_bytes() == first
