"""libflashpack.so through ctypes: everything that needs no torch.

One function takes a JSON request and returns JSON or an error text; its memory is freed here.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from .errors import FlashPackError, from_native
from .paths import is_url, shown_url

LIBRARY_FOLDER = Path(__file__).parents[1] / "_lib"

# [0] bytes done and [1] bytes in all are written by the native side; setting [2] to 1 cancels.
Counter: TypeAlias = "ctypes.Array[ctypes.c_int64]"
_PATHS = ("path", "other", "destination", "key")
_BYTES = ctypes.POINTER(ctypes.c_uint8)


def native_path(text: str) -> str | bytes:
    """The inverse of `local_path`: the bytes of a path, as text if they are UTF-8."""
    encoded = os.fsencode(text)
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded


def new_counter() -> Counter:
    """A zeroed progress buffer for one native call."""
    return (ctypes.c_int64 * 3)()


@functools.cache
def _library() -> ctypes.CDLL:
    path = LIBRARY_FOLDER / "libflashpack.so"
    if not path.exists():
        raise ImportError(f"{path} is missing: this installation of flashpack was not built; run pip install")
    library = ctypes.CDLL(str(path))
    library.flashpack_call.restype = ctypes.c_int32
    library.flashpack_call.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.POINTER(_BYTES),
        ctypes.POINTER(ctypes.c_size_t),
    ]
    library.flashpack_free.restype = None
    library.flashpack_free.argtypes = [_BYTES, ctypes.c_size_t]
    return library


def call(op: str, progress: Counter | None = None, **fields: object) -> Any:
    """Run one native operation and return its decoded JSON result.

    The interpreter lock is released meanwhile. Raises what `from_native` makes of the error.
    """
    library = _library()
    request = json.dumps({"op": op, **fields, **_native_paths(fields)}, default=list).encode()
    reply, length = _BYTES(), ctypes.c_size_t()
    status = library.flashpack_call(
        request, len(request), progress, ctypes.byref(reply), ctypes.byref(length)
    )
    try:
        text = ctypes.string_at(reply, length.value).decode() if length.value else ""
    finally:
        library.flashpack_free(reply, length)
    if status == 0:
        return decoded(text, fields.get("path"))
    raise from_native(text) or RuntimeError(f"flashpack {op}: {text or 'failed without a message'}")


def read_index(path: str) -> dict[str, Any]:
    """What a model says of itself as the footer of a FlashPack file says it; `path` is as from `model_path`.

    Of several files the offsets count through all of them. Raises as `load_file`.
    """
    index: dict[str, Any] = call("index", path=path)
    return index


class DType(NamedTuple):
    """What the format knows of a dtype.

    `safetensors`: that format's name, if it has one. `bytes`: of an element. `castable`: floating numbers,
    one to an element. `converted`: conversions cast it without torch.
    """

    safetensors: str | None
    bytes: int
    castable: bool
    converted: bool


@functools.cache
def dtypes() -> dict[str, DType]:
    """The dtypes that the format has, by torch's names."""
    return {name: DType(*facts) for name, facts in call("dtypes").items()}


def environment() -> dict[str, Any]:
    """The values of those environment variables that matter to Python, defaults included, by their names.

    Raises ValueError that names a variable with a malformed value.
    """
    values: dict[str, Any] = call("environment")
    return values


def _native_paths(fields: Mapping[str, object]) -> dict[str, object]:
    """Those of the fields that hold paths, as the operating system knows them."""
    return {name: native_path(text) for name in _PATHS if isinstance(text := fields.get(name), str)}


def decoded(text: str, path: object) -> Any:
    """The JSON that the native side gives. Raises FlashPackError for more than Python's decoder takes."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # integers of thousands of digits, nesting without end
        shown = shown_url(path) if isinstance(path, str) and is_url(path) else path
        raise FlashPackError(f"{shown}: what the file says of itself cannot be decoded: {error}") from None
