"""Paths: as the text the native side takes, and as destinations that must not be their own source."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

T = TypeVar("T")
StrPath: TypeAlias = str | os.PathLike[str]
SEPARATOR = "\0"  # between the files of a list, for the native side

_RENAMING_REFUSED = frozenset({errno.EBUSY, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP})
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


def read_one_version(path: str, read: Callable[[], T]) -> T:
    """`read()`, which opens `path` more than once; again while another file takes its place meanwhile."""
    files = path.split(SEPARATOR)
    while True:
        with ExitStack() as held:  # so that no other file can get their numbers
            descriptors = [os.open(file, os.O_PATH) for file in files]
            for descriptor in descriptors:
                held.callback(os.close, descriptor)
            result = read()
            now = [Path(file).stat() for file in files]
            if all(map(os.path.samestat, map(os.fstat, descriptors), now)):
                return result


def identity_of(path: str) -> tuple[int, ...]:
    """What changes when a file of the model is replaced or written to; nothing if one is gone."""
    try:
        states = [Path(file).stat() for file in path.split(SEPARATOR)]
    except OSError:
        return ()
    return tuple(number for it in states for number in (it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns))


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
    """Create the folder that `path` lies in, as 0.4.5 does."""
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Yield a fresh sibling file to fill; it replaces `destination` only when the block succeeds.

    A symbolic link is followed. The mode is that of the file replaced, else the umask's (tempfile's 0600
    would be neither). Raises OSError, also for a destination that is no regular file.
    """
    target = destination.resolve()
    _refuse_irregular(target)
    prefix = f".{shortened(target.name)}.flashpack-tmp-"
    _remove_abandoned(target.parent, prefix)
    temporary = target.with_name(f"{prefix}{secrets.token_hex(8)}")
    with _naming(target, temporary), _created(temporary, target) as lock, _cleaning_up(temporary):
        with suppress(OSError):  # without locks (some network file systems) abandoned files stay
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        yield temporary
        sync(temporary, target)
        _put_in_place(temporary, target)
    sync(target.parent, target.parent)


def _created(temporary: Path, target: Path) -> BinaryIO:
    """The new file; at no time may more people open it than the one it replaces."""
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666
    return open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, mode & 0o666))


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename; where that is refused to all (mount points, some FUSE), copy (as natively)."""
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in _RENAMING_REFUSED:
            raise
        with temporary.open("rb") as new, target.open("wb") as copy:
            shutil.copyfileobj(new, copy)
        sync(target, target)
        temporary.unlink()


def _refuse_irregular(target: Path) -> None:
    """Folders cannot be replaced by a file, device nodes and pipes must not be."""
    refuse_folder(target)
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "cannot write: is not a regular file", str(target))


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


@contextmanager
def _naming(target: Path, temporary: Path) -> Iterator[None]:
    """Errors about the temporary file name its destination, which is what the caller knows."""
    try:
        yield
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None


@contextmanager
def _cleaning_up(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove temporary files whose writers died: those that nobody holds a lock on (as natively)."""
    for path in folder.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):
            found = path.lstat()
            # One this young may not have been locked by its writer yet.
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > 1:
                # Not waiting: by now it may be a pipe that somebody else has put there.
                with open(path, "rb", opener=_open_at_once) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


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
