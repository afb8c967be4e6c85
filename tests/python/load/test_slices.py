"""Parts of tensors: the same bytes as of the whole, and hardly any others are read."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import numpy as np
import pytest
import torch
from helpers import (
    DTYPES,
    MIB,
    SAFETENSORS_DTYPES,
    assert_same,
    bits,
    bytes_read,
    dtype_id,
    flip_byte,
    noise,
    place_of,
)
from page_cache import forget
from safetensors.torch import save_file as save_safetensors
from torch import Tensor

# What a load reads beside tensors: the end of the file with its footer, a byte here and there to see what is
# in the page cache, and what the system tells of memory: some KiB of each control group, a few times.
BESIDE = 160 << 10
PER_RUN = 8192

CUTS: list[tuple[tuple[int, int, int], ...]] = [
    ((0, 1, 3),),
    ((0, 0, 5),),
    ((1, 2, 6),),
    ((2, 1, 2),),
    ((0, 4, 5), (2, 3, 8)),
    ((0, 0, 2), (1, 6, 7), (2, 0, 5)),
    ((1, 3, 3),),
    ((0, 5, 5), (1, 0, 1)),
]


def cut(tensor: Tensor, cuts: tuple[tuple[int, int, int], ...]) -> Tensor:
    """The same part by torch's own indexing of bytes, which every dtype has."""
    index = [slice(None)] * tensor.dim()
    for dim, start, stop in cuts:
        index[dim] = slice(start, stop)
    size = tensor.element_size()
    flat = tensor.reshape(-1, 1).view(torch.uint8).view(*tensor.shape, size)
    part = flat[tuple(index)].contiguous()
    return part.reshape(-1).view(tensor.dtype).view(part.shape[:-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("eager", [None, False, True])
def test_a_slice_is_a_part_of_the_whole(dtype: torch.dtype, eager: bool | None, path: Path) -> None:
    tensors = {str(number): noise(dtype, (5, 7, 8), number) for number in range(len(CUTS))}
    flashpack.save_file({**tensors, "whole": noise(dtype, (3,), 99)}, path)
    slices = dict(zip(tensors, CUTS, strict=True))
    loaded = flashpack.load_file(path, slices=slices, eager=eager)
    expected = {name: cut(tensors[name], slices[name]) for name in tensors}
    assert_same(loaded, {**expected, "whole": noise(dtype, (3,), 99)})
    assert all(tensor.is_contiguous() for tensor in loaded.values())
    some = flashpack.load_file(path, names=["3"], slices={"3": slices["3"][0]}, eager=eager)
    assert_same(some, {"3": expected["3"]})


@pytest.mark.parametrize("kind", ["safetensors", "shards", "dense"])
@pytest.mark.parametrize("eager", [None, True])
def test_other_files_are_sliced_too(kind: str, eager: bool | None, tmp_path: Path) -> None:
    tensors = {
        dtype_id(dtype): noise(dtype, (7, 5, 3), seed) for seed, dtype in enumerate(SAFETENSORS_DTYPES)
    }
    tensors["wide"] = noise(torch.float32, (70, 9001), 99)
    path = tmp_path / "model.flashpack"
    if kind == "safetensors":
        path = tmp_path / "model.safetensors"
        save_safetensors(tensors, path)
    elif kind == "shards":
        flashpack.pack_to_file(tensors, path, max_shard_size="1MB")
    else:
        flashpack.pack_to_file(tensors, path, align_bytes=0)
    slices = {**dict.fromkeys(tensors, ((1, 2, 4), (2, 0, 1))), "wide": ((1, 10, 4000),)}
    loaded = flashpack.load_file(path, slices=slices, eager=eager)
    assert_same(loaded, {name: cut(tensor, slices[name]) for name, tensor in tensors.items()})


def test_tied_tensors_are_sliced_each_in_its_way(path: Path) -> None:
    weight = torch.randn(40, 60)
    flashpack.save_file({"a": weight, "b": weight, "c": weight, "d": weight}, path)
    for eager in (False, True):
        slices = {"a": (1, 3, 20), "b": (0, 0, 7), "d": (1, 3, 20)}
        loaded = flashpack.load_file(path, slices=slices, eager=eager, verify=eager or None)
        expected = {"a": weight[:, 3:20], "b": weight[:7], "c": weight, "d": weight[:, 3:20]}
        assert_same(loaded, expected)
        assert loaded["a"].data_ptr() == loaded["d"].data_ptr()


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ({"weight": (2, 0, 1)}, "no dimension 2"),
        ({"weight": (1, 2, 5)}, r"no part 2\.\.5"),
        ({"weight": (1, 2, 1)}, r"no part 2\.\.1"),
        ({"weight": [(0, 0, 1), (0, 1, 2)]}, "sliced twice"),
        ({"weight": (0, -1, 3)}, "negative"),
        ({"weight": (0, 1)}, r"expected \(dim, start, stop\)"),
        ({"weight": 5}, r"expected \(dim, start, stop\)"),
        ({"nobody": (0, 0, 1)}, "nobody"),
    ],
)
def test_parts_that_are_not_there_are_refused(slices: Any, message: str, path: Path) -> None:
    flashpack.save_file({"weight": torch.ones(3, 4)}, path)
    with pytest.raises(ValueError, match=message):
        flashpack.load_file(path, slices=slices)
    if "nobody" not in slices and "expected" not in message and "negative" not in message:
        with pytest.raises(ValueError, match=f"{path}.*weight.*{message}"):
            flashpack.load_file(path, names=["weight"], slices=slices)


# Indexing


INDICES: list[Any] = [
    *(0, -1, slice(1, 3), slice(None), ..., ()),
    *((1, 2), (slice(None), 2), (..., 2), (..., slice(1, 4), 0), (0, ..., 5)),
    *((slice(2, 2), 1), (slice(3, 1),), (slice(-3, -1), slice(None), slice(1, 400))),
    *((1, 2, 3), (1, 2, 3, ...), np.int64(2), (torch.tensor(1), slice(0, 1))),
    # What torch takes beside numbers and slices, and safetensors with it.
    *([], [1, 2], ([0, 3], slice(1, 3)), torch.tensor([1, 2]), np.array([3, 0])),
    *(None, True, (None, 1), slice(None, None, 2), (slice(None), slice(1, 5, 3)), (0, slice(4, 0))),
    (..., ...),
]


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_a_handle_is_indexed_as_a_tensor(index: Any, path: Path) -> None:
    cube = noise(torch.int32, (4, 5, 6))
    flashpack.save_file({"cube": cube}, path)
    with flashpack.open(path) as file:
        part = file.get_slice("cube")[index]
        assert (part.shape, bits(part)) == (cube[index].shape, bits(cube[index]))
        part.zero_()
        assert bits(file.get_tensor("cube")) == bits(cube), "slices have memory of their own"


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (4, IndexError),
        ((0, -6), IndexError),
        ((0, 0, 0, 0), IndexError),
        ([9], IndexError),
        (1.0, IndexError),
        (slice(None, None, -1), ValueError),
    ],
    ids=repr,
)
def test_other_indices_are_refused(index: Any, error: type[Exception], path: Path) -> None:
    flashpack.save_file({"cube": noise(torch.int32, (4, 5, 6))}, path)
    with flashpack.open(path) as file, pytest.raises(error):
        file.get_slice("cube")[index]


@pytest.mark.parametrize("removed", [False, True])
def test_a_handle_slices_the_file_that_it_opened(removed: bool, path: Path) -> None:
    old, new = noise(torch.float32, (30, 40), 1), noise(torch.float32, (30, 40), 2)
    flashpack.save_file({"weight": old}, path)
    with flashpack.open(path) as file:
        part = file.get_slice("weight")
        if removed:
            path.unlink()
        else:
            flashpack.save_file({"weight": new}, path)
        assert bits(part[:, 3:5]) == bits(old[:, 3:5])


# What is read


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("large") / "model.flashpack"
    tensors = {
        "wide": noise(torch.float32, (64, 64 << 10), 1),
        "tall": noise(torch.bfloat16, (8 << 10, 512), 2),
        "cube": noise(torch.uint8, (16, 300, 2000), 3),
    }
    flashpack.save_file(tensors, path)
    return path, tensors


@pytest.mark.parametrize("direct", ["0", "1", "auto"])
@pytest.mark.parametrize("eager", [None, True])
@pytest.mark.parametrize(
    ("name", "cuts", "runs"),
    [
        ("wide", ((0, 3, 20),), 1),
        ("wide", ((1, 5, 9000),), 64),
        ("wide", ((1, 0, 1),), 64),
        ("wide", ((0, 1, 2), (1, 7, 8)), 1),
        ("tall", ((1, 128, 256),), 8 << 10),
        ("cube", ((1, 100, 150),), 16),
        ("cube", ((0, 2, 9), (1, 3, 5), (2, 10, 1000)), 14),
    ],
)
def test_little_more_is_read_than_the_part(
    large: tuple[Path, dict[str, Tensor]],
    direct: str,
    eager: bool | None,
    name: str,
    cuts: Any,
    runs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, tensors = large
    monkeypatch.setenv("FLASHPACK_DIRECT_IO", direct)
    expected = cut(tensors[name], cuts)
    before = bytes_read()
    loaded = flashpack.load_file(path, names=[name], slices={name: cuts}, eager=eager)
    asked = bytes_read() - before
    assert bits(loaded[name]) == bits(expected)
    assert asked <= expected.nbytes + runs * PER_RUN + BESIDE
    report = flashpack.last_load()
    assert report is not None
    assert report.bytes <= expected.nbytes + runs * PER_RUN
    if eager or cuts[0][0]:  # else it is mapped
        assert report.bytes >= expected.nbytes


def test_a_handle_reads_as_little(large: tuple[Path, dict[str, Tensor]]) -> None:
    path, tensors = large
    with flashpack.open(path) as file:
        before = bytes_read()
        part = file.get_slice("wide")[5:7, 1000:3000]
        assert bytes_read() - before <= part.nbytes + 2 * PER_RUN + BESIDE
    assert bits(part) == bits(tensors["wide"][5:7, 1000:3000])


@pytest.mark.parametrize("eager", [None, True])
def test_names_and_filters_decide_what_is_read(
    large: tuple[Path, dict[str, Tensor]], eager: bool | None, tmp_path: Path
) -> None:
    original, tensors = large

    def read_for(load: Callable[[Path], object]) -> int:
        path = tmp_path / "cold.flashpack"
        path.unlink(missing_ok=True)
        shutil.copy(original, path)  # whose pages no tensors of other loads hold
        forget(path)
        before = bytes_read()
        load(path)
        return bytes_read() - before

    cube = tensors["cube"].nbytes
    whole_chunks = 128 << 10  # at both ends, to verify them
    low, high = (cube, cube + BESIDE + whole_chunks) if eager else (0, BESIDE)
    assert low <= read_for(lambda path: flashpack.load_file(path, names=["cube"], eager=eager)) <= high
    model = torch.nn.Module()
    model.register_buffer("cube", torch.empty_like(tensors["cube"]))
    options: dict[str, Any]
    for options in (
        {"ignore_names": ["wide", "tall"]},
        {"ignore_prefixes": ["wi"], "ignore_suffixes": ["all"]},
        {"strict": False, "strict_params": False},
    ):
        # The footer is read to check names and shapes, and again by the load.
        load = lambda path: flashpack.assign_from_file(model, path, eager=eager, **options)  # noqa: E731, B023
        assert low <= read_for(load) <= high + BESIDE
        assert bits(model.cube) == bits(tensors["cube"])


# Verification


def test_slices_are_verified_where_chunks_are_whole(path: Path) -> None:
    tensors = {"weight": noise(torch.uint8, (8, MIB), 1)}
    flashpack.save_file(tensors, path)
    place = place_of(path, "weight")[0]
    flip_byte(path, place + 3 * MIB + 5)
    with pytest.raises(flashpack.ChecksumError, match="weight"):
        flashpack.load_file(path, slices={"weight": (0, 2, 5)}, eager=True)
    assert_same(
        flashpack.load_file(path, slices={"weight": (0, 4, 8)}, eager=True),
        {"weight": tensors["weight"][4:]},
    )
    inner = flashpack.load_file(path, slices={"weight": (1, 100, 5000)}, eager=True)
    assert_same(inner, {"weight": tensors["weight"][:, 100:5000]})
    with pytest.raises(flashpack.ChecksumError, match="weight"):
        flashpack.load_file(path, slices={"weight": (1, 100, 5000)}, verify=True)


def test_a_small_part_of_a_large_model_starts_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only work on many bytes is watched from another thread."""
    from flashpack._core import progress

    path = tmp_path / "model.flashpack"
    tensor = torch.arange(10_000, dtype=torch.float32).reshape(100, 100)
    flashpack.save_file({"t": tensor}, path)
    monkeypatch.setattr(progress, "INLINE_BYTES", 1000)
    started: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
    with flashpack.open(path) as file:
        assert torch.equal(file.get_slice("t")[3:5, 7:9], tensor[3:5, 7:9])
        assert not started
        assert torch.equal(file.get_slice("t")[3:90], tensor[3:90])
        assert len(started) == 1
