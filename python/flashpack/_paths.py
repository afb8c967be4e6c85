"""Paths: as the text the native side takes, and as destinations that must not be their own source."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]


def text_path(path: StrPath) -> str:
    """`path` as text the native side can open. Raises TypeError or ValueError (not UTF-8, NUL inside)."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path must be str or os.PathLike[str], not {type(path).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"path is not valid UTF-8: {text!r}") from None
    if not text or "\0" in text:
        raise ValueError(f"not a path: {text!r}")
    return text


def with_suffix(path: Path, old: Collection[str], new: str) -> Path:
    """`path` with its suffix swapped for `new` when it is one of `old`, else with `new` appended."""
    return path.with_suffix(new) if path.suffix.lower() in old else path.with_name(path.name + new)


def destination_or(default: Path, destination: StrPath | None) -> Path:
    """`destination`: `default` when None, a file of the default's name in an existing folder."""
    if destination is None:
        return default
    path = Path(text_path(destination))
    return path / default.name if path.is_dir() else path


def refuse_source(destination: Path, sources: Iterable[Path]) -> None:
    """Raise ValueError when `destination` is one of `sources`, through links too."""
    for source in sources:
        if destination.resolve() == source.resolve() or (
            destination.exists() and destination.samefile(source)
        ):
            raise ValueError(f"{destination}: the destination is its own source ({source})")


def make_parent(path: StrPath) -> None:
    """Create the folder that `path` lies in, as 0.4.5 does."""
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Yield a fresh sibling file to fill; it replaces `destination` only when the block succeeds.

    A symbolic link is followed. The mode honours the umask (tempfile's 0600 would not).
    """
    target = destination.resolve()
    temporary = target.with_name(f".flashpack-{secrets.token_hex(8)}.tmp")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
