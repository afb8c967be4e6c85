"""flashpack.numpy: arrays to files and back, without torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import flashpack
import flashpack.numpy
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from helpers import DTYPES, bits, flip_byte, noise, read_footer
from processes import python, succeed

HERE = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32]
HERE += [np.uint16, np.uint8, np.bool_, np.complex64, np.complex128]
MORE = [
    ml_dtypes.complex32,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e8m0fnu,
]
WITHOUT_COUNTERPART = [torch.float4_e2m1fn_x2]  # two to a byte


def array(dtype: Any, shape: tuple[int, ...] = (3, 5)) -> np.ndarray[Any, Any]:
    return (np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype)


ARRAYS = {np.dtype(dtype).name: array(dtype, (3, 5 + place)) for place, dtype in enumerate(HERE + MORE)}


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        got = actual[name]
        assert isinstance(got, np.ndarray)
        assert (got.dtype, got.shape, got.tobytes()) == (value.dtype, value.shape, value.tobytes()), name


def test_every_dtype_comes_back(path: Path) -> None:
    flashpack.numpy.save_file(ARRAYS, path, {"step": "7"})
    assert_equal(flashpack.numpy.load_file(path), ARRAYS)
    assert flashpack.open(path).metadata() == {"step": "7"}
    flashpack.verify_file(path)
    loaded = flashpack.load_file(path)
    for name, value in ARRAYS.items():
        assert loaded[name].dtype == getattr(torch, name)
        assert bits(loaded[name]) == value.tobytes()


def test_tensors_come_as_arrays_of_their_bits(path: Path) -> None:
    tensors = {str(dtype): noise(dtype, (2, 3)) for dtype in DTYPES if dtype not in WITHOUT_COUNTERPART}
    flashpack.save_file(tensors, path)
    with flashpack.open(path, "np") as file:
        for name, value in flashpack.numpy.load_file(path).items():
            expected = (value.dtype, (2, 3), bits(tensors[name]))
            assert value.tobytes() == bits(tensors[name])
            for got in (file[name], file.get_slice(name)[:]):
                assert (got.dtype, got.shape, got.tobytes()) == expected
            assert file.get_slice(name)[1, 1:].tobytes() == bits(tensors[name][1, 1:])


def test_safetensors_files_give_what_safetensors_gives(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {name: ARRAYS[name] for name in ("float32", "float16", "int64", "bool", "complex64")}
    safetensors.numpy.save_file(arrays, path)
    assert_equal(flashpack.numpy.load_file(path), safetensors.numpy.load_file(path))
    assert_equal(flashpack.numpy.load(path.read_bytes()), safetensors.numpy.load(path.read_bytes()))


def test_arrays_of_any_strides_and_byte_order(path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {"t": base.T, "step": base[::2, ::3], "big": base.astype(">f4"), "scalar": np.float32(3)}
    arrays |= {"point": np.array(5, np.int64), "empty": np.zeros((0, 3), np.int8)}
    flashpack.numpy.save_file(arrays, path)
    loaded = flashpack.numpy.load_file(path)
    for name, value in arrays.items():
        assert loaded[name].shape == np.shape(value)
        assert np.array_equal(loaded[name], value)
        assert loaded[name].flags.writeable


def test_arrays_that_are_the_same_memory_are_stored_once(path: Path) -> None:
    one = np.ones((100, 100), np.float32)
    flashpack.numpy.save_file({"one": one, "other": one}, path)
    first, second = read_footer(path)["index"]
    assert first["offset"] == second["offset"]
    assert_equal(flashpack.numpy.load_file(path), {"one": one, "other": one})


def test_bytes_of_a_file() -> None:
    data = flashpack.numpy.save(ARRAYS, {"k": "v"})
    assert_equal(flashpack.numpy.load(data), ARRAYS)
    assert flashpack.open(io.BytesIO(data)).metadata() == {"k": "v"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["text"]), "dtype"),
        (np.array([object()]), "dtype"),
        (np.array(["2026-01-01"], "M8[s]"), "dtype"),
        (np.zeros(2, [("a", "f4")]), "dtype"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "MaskedArray"),
        ([1.0, 2.0], "list"),
        (torch.ones(2), "Tensor"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_array_of_numbers_is_refused_by_name(value: Any, message: str, path: Path) -> None:
    with pytest.raises(ValueError, match=f"'odd'.*{message}"):
        flashpack.numpy.save_file({"fine": np.ones(1), "odd": value}, path)
    assert not path.exists()


def test_no_arrays_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="No tensors to pack"):
        flashpack.numpy.save_file({}, path)


@pytest.mark.parametrize("dtype", WITHOUT_COUNTERPART, ids=str)
def test_a_dtype_that_numpy_lacks_is_refused_by_name(dtype: torch.dtype, path: Path) -> None:
    flashpack.save_file({"odd": noise(dtype, (2,))}, path)
    with pytest.raises(ValueError, match="'odd' is"):
        flashpack.numpy.load_file(path)


def test_damage_is_found_unless_nobody_wants_to_know(path: Path) -> None:
    flashpack.numpy.save_file({"a": np.zeros(1000, np.uint8)}, path)
    flip_byte(path, 0)
    with pytest.raises(flashpack.ChecksumError):
        flashpack.numpy.load_file(path)
    assert flashpack.numpy.load_file(path, verify=False)["a"][0] != 0


def test_torch_is_not_imported(path: Path) -> None:
    succeed(
        python(
            "-c",
            "import sys, numpy as np, flashpack.numpy as fn\n"
            "fn.save_file({'a': np.ones(3)}, sys.argv[1])\n"
            "assert fn.load_file(sys.argv[1])['a'].tolist() == [1.0] * 3\n"
            "assert 'torch' not in sys.modules",
            str(path),
        )
    )
