"""Files that take the place of others in one step."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .._core import native
from .._core.paths import StrPath, local_path, text_path

_KEPT_NAME_BYTES = 180  # of a file system's 255: what a temporary name keeps of the destination's


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
        self._made: dict[str, Any] = native.call("create", destination=text_path(destination))
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
        native.call("commit", **self._made)


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
