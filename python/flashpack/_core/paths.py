"""Paths: as the text the native side takes, and as destinations that must not be their own source."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]
SEPARATOR = "\0"  # between the files of a list, for the native side


def text_path(path: StrPath) -> str:
    """`path` as text. Raises TypeError, or ValueError (NUL inside, or not in the file system's encoding)."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path must be str or os.PathLike[str], not {type(path).__name__}")
    if not text or "\0" in text:
        raise ValueError(f"not a path: {text!r}")
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
