"""Paths as the operating system knows them, to and from the text that Python has for them."""

from __future__ import annotations

import os
from collections.abc import Iterable


def native_path(text: str) -> str | bytes:
    """The bytes by which Python's own functions know the file: as text if they are UTF-8."""
    encoded = os.fsencode(text)
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded


def local_path(native: str | Iterable[int]) -> str:
    """The inverse of `native_path`, of text or of the numbers of the bytes."""
    return os.fsdecode(native.encode() if isinstance(native, str) else bytes(native))
