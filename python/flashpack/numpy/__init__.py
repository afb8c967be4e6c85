"""NumPy arrays from and to FlashPack files, by safetensors' names. Needs no torch.

The package ml_dtypes gives NumPy bfloat16, the float8 types and complex32: files with these need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import native
from .._core.dtypes import numpy_dtype
from .._core.index import records_of
from .._core.paths import StrPath, text_path
from .._files.readable import Content, Readable, Source, as_path, readable, saved_bytes
from .._files.sources import watched, watched_size
from .._load.report import remember

__all__ = ["load", "load_file", "save", "save_file"]

Arrays = dict[str, NDArray[Any]]


def load_file(path: Source, *, verify: bool | None = None) -> Arrays:
    """The tensors of a FlashPack or safetensors file as arrays of their own, in file order.

    Every byte is read, and checksums are verified unless `verify=False`. `path` as in `flashpack.load_file`.
    Raises as `flashpack.load_file`; ValueError for a dtype that NumPy has no counterpart of.
    """
    with as_path(path) as text:
        opened = native.call("open", path=text)
        try:
            arrays: Arrays = {
                name: np.empty(shape, numpy_dtype(name, dtype))
                for name, shape, dtype in records_of(opened["index"])
            }
            told = watched(
                "fill",
                "Loading",
                silent=True,
                size=watched_size(opened["bytes"], text),
                model=opened["model"],
                arrays=_described(arrays),
                verify=verify,
            )
        finally:
            native.call("close", model=opened["model"])
    remember(told["load"])
    return arrays


def load(data: Content | Readable, *, verify: bool | None = None) -> Arrays:
    """The tensors of a file that is in memory, as `load_file` gives them."""
    return load_file(readable(data), verify=verify)


def save_file(
    arrays: Mapping[str, NDArray[Any]],
    path: StrPath,
    metadata: Mapping[str, str] | None = None,
    *,
    checksum: str | None = None,
    compress: str | None = None,
) -> None:
    """Write arrays to a FlashPack file, as `flashpack.save_file` writes tensors.

    Raises ValueError for no arrays and for a dtype that the format has no name for.
    """
    stored = {name: _storable(name, array) for name, array in arrays.items()}
    watched(
        "pack",
        "Packing",
        silent=True,
        size=sum(array.nbytes for array in stored.values()),
        path=text_path(path),
        arrays=_described(stored),
        metadata=dict(metadata or {}),
        checksum=checksum,
        compress=compress,
    )


def save(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of the file that `save_file` writes."""
    return saved_bytes(lambda path: save_file(arrays, path, metadata))


def _storable(name: str, array: Any) -> NDArray[Any]:
    """`array` dense, row-major and little-endian. Raises ValueError for what is no array of numbers."""
    if not isinstance(array, (np.ndarray, np.generic)) or isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{name!r} is a {type(array).__name__}, not a plain NumPy array")
    if array.dtype.name not in native.dtypes():
        raise ValueError(f"{name!r} cannot be packed: Unsupported dtype {array.dtype}")
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def _described(arrays: Arrays) -> list[dict[str, Any]]:
    """Arrays as the native side takes them: valid as long as the arrays live."""
    return [
        {"name": name, "dtype": array.dtype.name, "shape": array.shape, "address": array.ctypes.data}
        for name, array in arrays.items()
    ]
