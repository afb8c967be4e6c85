"""Paths: as the text the native side takes, and as destinations that must not be their own source."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath
from typing import TypeAlias, TypeGuard

StrPath: TypeAlias = str | os.PathLike[str]
SEPARATOR = "\0"  # between the files of a list, for the native side


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NO_PORT = re.compile(r"[^\[:]*:.*[^0-9]")
_SQUEEZED_URL = re.compile(r"(s3|gs|az|https?|hf):/[^/]")


def is_url(path: object) -> TypeGuard[str]:
    """Whether `path` is a URL: a scheme and `://`."""
    return isinstance(path, str) and _URL.match(path) is not None


def has_url(path: str) -> bool:
    """Whether `path`, or one of several that `SEPARATOR` divides, is a URL."""
    return any(map(is_url, path.split(SEPARATOR)))


def shown_url(url: str) -> str:
    """`url` as messages may show it: without user, password, query and fragment, where secrets are."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = re.split(r"[?#]", rest)[0].partition("/")
    host = authority.rpartition("@")[2]
    if _NO_PORT.match(host):  # a password that has a slash, ? or #, as keys of AWS do
        if "@" in rest:
            return shown_url(f"{scheme}://{rest.rpartition('@')[2]}")
        host = host.partition(":")[0]
    return f"{scheme}://{host}{slash}{path}"


def text_path(path: StrPath) -> str:
    """`path` as text. Raises TypeError, or ValueError (NUL inside, or not in the file system's encoding)."""
    if not isinstance(path, str | os.PathLike) or not isinstance(text := os.fspath(path), str):
        hint = ": flashpack.load takes the bytes of a file" if isinstance(path, bytes | bytearray) else ""
        raise TypeError(f"path must be str or os.PathLike[str], not {type(path).__name__}{hint}")
    if not text or "\0" in text:
        raise ValueError(f"not a path: {text!r}")
    if isinstance(path, PurePath) and _SQUEEZED_URL.match(text):
        raise ValueError(f"{text}: pathlib has taken a slash from this URL; give it as a string")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"not a path in the file system's encoding: {text!r}") from None
    return text


def with_suffix(path: Path, old: Collection[str], new: str) -> Path:
    """`path` with its suffix swapped for `new` when it is one of `old`, else with `new` appended."""
    return path.with_suffix(new) if path.suffix.lower() in old else path.with_name(path.name + new)


def refuse_source(destination: Path, sources: Iterable[Path]) -> None:
    """Raise ValueError when `destination` is one of `sources`, through links too."""
    for source in sources:
        if destination.resolve() == source.resolve() or (
            destination.exists() and source.exists() and destination.samefile(source)
        ):
            raise ValueError(f"{destination}: the destination is its own source ({source})")
