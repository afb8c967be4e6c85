"""The errors FlashPack raises, and how a tagged native message becomes one of them."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# The last one is ours: in the JSON that follows, a path's own quotes are escaped.
_TAG = ' [flashpack:{"'
_OS_SUFFIX = re.compile(r" \(os error \d+\)")


class FlashPackError(ValueError):
    """A file that is not sound FlashPack: the message names the file, the record and the numbers."""


class ChecksumError(FlashPackError):
    """Bytes of the payload or of the index are not the bytes that were written."""


class SignatureError(FlashPackError):
    """A file that is not signed, is signed by another key, or is not what was signed."""


@contextmanager
def naming_torch(what: str) -> Iterator[None]:
    """Raise an ImportError that says what to install if torch is missing in the block."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        message = f"{what} needs PyTorch, which is not installed: pip install 'torch>=2.11'"
        raise ImportError(message, name="torch") from error


def may_need_torch(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`naming_torch` around a function, with no frame but ours between it and its caller, for warnings."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def guarded(*args: P.args, **options: P.kwargs) -> T:
            with naming_torch(what):
                return function(*args, **options)

        return guarded

    return decorate


_KINDS: dict[str, type[BaseException]] = {
    "format": FlashPackError,
    "checksum": ChecksumError,
    "signature": SignatureError,
    "argument": ValueError,
    "unsupported": ValueError,
    "memory": MemoryError,
    "cancelled": KeyboardInterrupt,
    "internal": RuntimeError,
}


def local_path(native: str | Iterable[int]) -> str:
    """A path of the native side's, text or the numbers of its bytes, as Python's own functions know it."""
    return os.fsdecode(native.encode() if isinstance(native, str) else bytes(native))


def from_native(text: str) -> BaseException | None:
    """The exception that a native error text stands for, or None for a text without FlashPack's tag."""
    message, tag, tail = text.rpartition(_TAG)
    if not tag:
        return None
    details: dict[str, Any] = json.JSONDecoder().raw_decode('{"' + tail)[0]
    native, path, reason = details["path"], None, message
    if native is not None:
        # The native side's own message has a question mark for what is not UTF-8.
        shown = native if isinstance(native, str) else bytes(native).decode(errors="replace")
        path, reason = local_path(native), message.removeprefix(f"{shown}: ")
        if reason != message:
            message = f"{path.encode(errors='backslashreplace').decode()}: {reason}"
    if details["kind"] == "io":  # OSError picks the subclass from errno, and shows the path itself
        return OSError(details["errno"] or errno.EIO, _OS_SUFFIX.sub("", reason), path)
    return _KINDS.get(details["kind"], RuntimeError)(message)
