"""Writing a model as several files: shards of a bounded size, and the index model hubs know. No torch."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import resource
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from .._core import native
from .._core.names import is_utf8
from .._core.paths import StrPath
from .new_file import NewFile, make_parent, refuse_folder, replacing, shortened, sync

INDEX_SUFFIX = ".index.json"
_UNLOCKED = "-new"
SET_KEY = "flashpack_set"  # the native side looks for it, too


class ShardFile(NamedTuple):
    """A file to fill with a shard: what it is called, and its descriptor if it has no name yet."""

    path: StrPath
    descriptor: int | None = None


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?|)B", re.ASCII)


def parse_size(size: int | str) -> int:
    """`size` in bytes: a number, or text as in "5GB" (10^9) and "500 MiB" (2^20). Raises ValueError."""
    parsed = size
    if isinstance(size, str):
        match = _SIZE.fullmatch(size.strip().upper())
        parsed = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not isinstance(parsed, int) or isinstance(parsed, bool) or parsed < 1:
        raise ValueError(f'max_shard_size must be a number of bytes, or text such as "5GB", not {size!r}')
    return parsed


def split(sizes: Mapping[str, int], limit: int, same: Mapping[str, str] | None = None) -> list[list[str]]:
    """The names of each shard, in order: as many as fit in `limit` bytes, but at least one.

    `same` maps names that are stored under another name, earlier in `sizes`, to that: they go where it goes.
    """
    shards: list[list[str]] = []
    home: dict[str, int] = {}
    filled = 0
    for name, size in sizes.items():
        root = (same or {}).get(name)
        if root is not None:
            shards[home[root]].append(name)
            continue
        if not shards or filled + size > limit:
            shards.append([])
            filled = 0
        home[name] = len(shards) - 1
        shards[-1].append(name)
        filled += size
    return shards


def index_path(destination: Path) -> Path:
    """The index of the shards that are saved as `destination`."""
    return destination.with_name(destination.name + INDEX_SUFFIX)


def write_shards(
    destination: Path,
    shards: Sequence[Sequence[str]],
    total_bytes: int,
    write: Callable[[ShardFile, Sequence[str], dict[str, str]], None],
) -> None:
    """Write `shards` as `destination`'s name with their numbers in it, then the index, and sweep old ones.

    `write` fills the file of a shard, with metadata. Until all are written, what was there before stays. The
    shards and the index name their save, so that a load refuses a mixture of two. A single shard is
    `destination` itself. Raises OSError, ValueError for a name that an index cannot hold.
    """
    refuse_folder(destination)
    make_parent(destination)
    _sweep_staged(destination)
    if len(shards) == 1:
        write(ShardFile(destination), shards[0], {})
        index_path(destination).unlink(missing_ok=True)
        _sweep(destination, ())
        return
    save = secrets.token_hex(8)
    names = [
        f"{destination.stem}-{number:05d}-of-{len(shards):05d}{destination.suffix}"
        for number in range(1, len(shards) + 1)
    ]
    index = _index(dict(zip(names, shards, strict=True)), total_bytes, save)
    with _new_files(destination, names) as (files, put_in_place):
        for file, tensors in zip(files, shards, strict=True):
            write(file, tensors, {SET_KEY: save})
        with replacing(index_path(destination)) as new_index:
            new_index.write(index)
            new_index.flush()
            os.fsync(new_index.fileno())
            put_in_place()
    destination.unlink(missing_ok=True)
    _sweep(destination, names)


def _index(shards: Mapping[str, Sequence[str]], total_bytes: int, save: str) -> bytes:
    """The text of the index. Raises ValueError for names that are not UTF-8."""
    if not is_utf8("".join(shards)):
        raise ValueError(
            f"{next(iter(shards))!r} is not UTF-8, as the names of shards must be: the index lists them"
        )
    index = {
        "metadata": {"total_size": total_bytes, SET_KEY: save},
        "weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors},
    }
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()


@contextmanager
def _new_files(
    destination: Path, names: Sequence[str]
) -> Iterator[tuple[list[ShardFile], Callable[[], None]]]:
    """The files to fill, and what puts them in place.

    They have no names, so that nothing stays of a writer that is killed. Where the file system needs names,
    or there are more files than a process should hold open, they lie in a folder that the next save sweeps.
    """
    places = [destination.with_name(name) for name in names]
    with ExitStack() as held:
        with NewFile(index_path(destination)) as first:
            needs_names = first.temporary is not None
        if nameless := [] if needs_names else _nameless(places, held):
            files = [ShardFile(place, new.descriptor) for place, new in zip(places, nameless, strict=True)]
            yield files, lambda: _commit(nameless)
            return
        staging = held.enter_context(_staging(destination))

        def put_in_place() -> None:
            for place in places:
                (staging / place.name).replace(place)
            sync(destination.parent, destination.parent)

        yield [ShardFile(staging / name) for name in names], put_in_place


def _nameless(places: Sequence[Path], held: ExitStack) -> list[NewFile]:
    """Files without names for all of `places`, open until `held` ends; none if that cannot be."""
    if len(places) > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4:
        return []
    with ExitStack() as made:
        files: list[NewFile] = []
        for place in places:
            files.append(made.enter_context(NewFile(place)))
            if files[-1].temporary is not None:
                return []
        held.push(made.pop_all())
    return files


def _commit(files: Sequence[NewFile]) -> None:
    """Put shards in place. Those of their names go first: to replace them needs temporary names."""
    for file in files:
        with suppress(OSError):
            file.destination.unlink()
        file.link()
    for folder in {file.destination.parent for file in files}:
        sync(folder, folder)


def _sweep(destination: Path, keep: Sequence[str]) -> None:
    """Remove the shards of earlier saves, and what killed ones have left of their indices."""
    native.call("sweep", destination=str(index_path(destination)))
    pattern = re.compile(rf"{re.escape(destination.stem)}-\d{{5}}-of-\d{{5}}{re.escape(destination.suffix)}")
    for path in destination.parent.iterdir():
        if pattern.fullmatch(path.name) and path.name not in keep:
            path.unlink(missing_ok=True)


@contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    """A folder beside the destination, gone in the end.

    Its writer locks a file in it. Until then its name ends in `_UNLOCKED`.
    """
    folder = destination.with_name(_staging_prefix(destination) + secrets.token_hex(8))
    unlocked = folder.with_name(folder.name + _UNLOCKED)
    unlocked.mkdir()
    try:
        with _locked(unlocked):
            unlocked.rename(folder)
            yield folder
    finally:
        shutil.rmtree(unlocked, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _staging_prefix(destination: Path) -> str:
    """How the names of this host's folders begin, as locks need not reach further."""
    host = zlib.crc32(os.fsencode(os.uname().nodename))
    return f".{shortened(destination.name)}.flashpack-tmp-set-{host:08x}-"


def _sweep_staged(destination: Path) -> None:
    """Remove the folders that killed saves have left."""
    for left in destination.parent.glob(f"{glob.escape(_staging_prefix(destination))}*"):
        with suppress(OSError):
            # One this young may not have been locked by its writer yet.
            if not left.name.endswith(_UNLOCKED) or time.time() - left.stat().st_mtime > 1:
                with _locked(left):
                    shutil.rmtree(left)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: that of a file, as network file systems lock no folders. Raises OSError."""
    with (folder / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
