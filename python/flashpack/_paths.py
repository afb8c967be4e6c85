"""Paths: as the text the native side takes, and as destinations that must not be their own source."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from . import _native
from ._os_paths import local_path

StrPath: TypeAlias = str | os.PathLike[str]
SEPARATOR = "\0"  # between the files of a list, for the native side

_KEPT_NAME_BYTES = 180  # of a file system's 255: what a temporary name keeps of the destination's


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
            destination.exists() and destination.samefile(source)
        ):
            raise ValueError(f"{destination}: the destination is its own source ({source})")


def make_parent(path: StrPath) -> None:
    """Create the folder that `path` lies in, durably."""
    folder = Path(path).absolute().parent
    missing = [it for it in (folder, *folder.parents) if not it.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for created in missing:
        sync(created.parent, created.parent)


class NewFile:
    """An empty file that takes `destination`'s place when it is committed. A context: else it vanishes.

    It has no name where the file system allows that, so that a killed writer leaves nothing. A symbolic
    link is followed. The mode is that of the file replaced, else the umask's. Raises OSError, also for a
    destination that is no regular file.
    """

    def __init__(self, destination: Path) -> None:
        self._made: dict[str, Any] = _native.call("create", destination=text_path(destination))
        self.descriptor: int = self._made["descriptor"]
        self.destination = Path(local_path(self._made["destination"]))
        name = self._made["temporary"]
        self.temporary = None if name is None else Path(local_path(name))

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        if self.temporary is not None:
            self.temporary.unlink(missing_ok=True)

    def link(self) -> None:
        """`commit` a file without a name that is on the disk, but leave its folder to be flushed."""
        own = f"/proc/self/fd/{self.descriptor}"
        try:
            # Any folder: only with one does Python follow the link, which leads to the file itself.
            os.link(own, self.destination, src_dir_fd=self.descriptor, follow_symlinks=True)
        except OSError:
            self.commit()

    def commit(self) -> None:
        """Flush the file to the disk and put it in place. Raises OSError."""
        _native.call("commit", **self._made)


@contextmanager
def replacing(destination: Path) -> Iterator[BinaryIO]:
    """Yield a new file to fill; it takes `destination`'s place only when the block succeeds.

    Raises as `NewFile`.
    """
    with NewFile(destination) as new, open(new.descriptor, "w+b", closefd=False) as file:
        yield file
        file.flush()
        new.commit()


def refuse_folder(target: Path) -> None:
    """Raise IsADirectoryError for a destination that is a folder."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))


def shortened(name: str) -> str:
    """`name`, cut between characters where it is too long to become part of another name."""
    encoded = os.fsencode(name)
    if len(encoded) <= _KEPT_NAME_BYTES:
        return name
    return encoded[:_KEPT_NAME_BYTES].decode(errors="ignore")


def sync(path: Path, named: Path) -> None:
    """Flush a file, or a folder's entries, to the disk. Raises OSError that names `named`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        what = "the folder" if path.is_dir() else "the file"
        raise OSError(error.errno, f"cannot flush {what} to disk: {error.strerror}", str(named)) from None
    finally:
        os.close(descriptor)
