"""libflashpack.so through ctypes: everything that needs no torch.

One function takes a JSON request and returns JSON or an error text; its memory is freed here.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from .errors import FlashPackError, from_native
from .paths import has_url, is_url, shown_url

T = TypeVar("T")

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


def settle(future: Future[T], body: Callable[[], T]) -> None:
    """Have `future` give what `body` returns or raises."""
    try:
        result = body()
    except BaseException as error:  # noqa: BLE001 (handed to the waiting thread, whatever it is)
        future.set_exception(error)
    else:
        future.set_result(result)


def in_thread(work: Callable[[Counter | None], T], watch: Callable[[Future[T], Counter], object]) -> T:
    """Return `work(counter)`, which runs in a thread of its own while this one does `watch`.

    KeyboardInterrupt, or what `watch` raises, cancels the native call, waits until it has cleaned up, and is
    raised again. Where no thread can start, as at the interpreter's end, the call runs here, unwatched.
    """
    if sys.is_finalizing():
        return work(None)
    counter = new_counter()
    future: Future[T] = Future()
    thread = threading.Thread(target=settle, args=(future, lambda: work(counter)), name="flashpack")
    try:
        try:
            thread.start()  # inside: an interrupt can find it started and us not yet back
        except RuntimeError:  # at exit since Python 3.12, or too many threads
            return work(None)
        watch(future, counter)
    except BaseException:
        counter[2] = 1
        _wait_through_interrupts(thread)
        raise
    return future.result()


def _wait_through_interrupts(thread: threading.Thread) -> None:
    """A second Ctrl-C must not leave a thread writing behind the caller's back."""
    while thread.is_alive():
        with suppress(KeyboardInterrupt):
            thread.join()


def waiting_for_servers(work: Callable[[Counter | None], T]) -> T:
    """Return `work(counter)`, which may wait for servers: Ctrl-C ends it as `in_thread` says."""
    return in_thread(work, lambda future, _: wait([future]))


def call(op: str, progress: Counter | None = None, **fields: object) -> Any:
    """Run one native operation and return its decoded JSON result.

    The interpreter lock is released meanwhile. Raises what `from_native` makes of the error.
    """
    paths = [path for name in _PATHS if isinstance(path := fields.get(name), str)]
    if progress is None and any(map(has_url, paths)):
        return waiting_for_servers(lambda counter: _call(op, counter, fields))
    return _call(op, progress, fields)


def _call(op: str, progress: Counter | None, fields: Mapping[str, object]) -> Any:
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
