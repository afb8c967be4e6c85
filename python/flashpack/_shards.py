"""Writing a model as several files: shards of a bounded size, and the index model hubs know. No torch."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ._paths import make_parent, refuse_folder, replacing, shortened, sync

INDEX_SUFFIX = ".index.json"
_UNLOCKED = "-new"
SET_KEY = "flashpack_set"  # the native side looks for it, too

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
    write: Callable[[Path, Sequence[str], dict[str, str]], None],
) -> None:
    """Write `shards` as `destination`'s name with their numbers in it, then the index, and sweep old ones.

    `write` makes the file of a shard, with metadata. Until all are written, what was there before stays. The
    shards and the index name their save, so that a load refuses a mixture of two. A single shard is
    `destination` itself. Raises OSError.
    """
    refuse_folder(destination)
    make_parent(destination)
    if len(shards) == 1:
        write(destination, shards[0], {})
        index_path(destination).unlink(missing_ok=True)
        _sweep(destination, ())
        return
    save = secrets.token_hex(8)
    names = [
        f"{destination.stem}-{number:05d}-of-{len(shards):05d}{destination.suffix}"
        for number in range(1, len(shards) + 1)
    ]
    with _staging(destination) as staging:
        for name, tensors in zip(names, shards, strict=True):
            write(staging / name, tensors, {SET_KEY: save})
        for name in names:
            (staging / name).replace(destination.with_name(name))
    sync(destination.parent, destination.parent)
    index = {
        "metadata": {"total_size": total_bytes, SET_KEY: save},
        "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    with replacing(index_path(destination)) as file:
        file.write((json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode())
    destination.unlink(missing_ok=True)
    _sweep(destination, names)


def _sweep(destination: Path, keep: Sequence[str]) -> None:
    """Remove the shards of earlier saves."""
    pattern = re.compile(rf"{re.escape(destination.stem)}-\d{{5}}-of-\d{{5}}{re.escape(destination.suffix)}")
    for path in destination.parent.iterdir():
        if pattern.fullmatch(path.name) and path.name not in keep:
            path.unlink(missing_ok=True)


@contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    """A folder beside the destination, gone in the end; those that dead writers of this host left go, too.

    Its writer locks a file in it. Until then its name ends in `_UNLOCKED`.
    """
    host = zlib.crc32(os.fsencode(os.uname().nodename))
    prefix = f".{shortened(destination.name)}.flashpack-tmp-set-{host:08x}-"
    for left in destination.parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):
            # One this young may not have been locked by its writer yet.
            if not left.name.endswith(_UNLOCKED) or time.time() - left.stat().st_mtime > 1:
                with _locked(left):
                    shutil.rmtree(left)
    folder = destination.with_name(prefix + secrets.token_hex(8))
    unlocked = folder.with_name(folder.name + _UNLOCKED)
    unlocked.mkdir()
    try:
        with _locked(unlocked):
            unlocked.rename(folder)
            yield folder
    finally:
        shutil.rmtree(unlocked, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: that of a file, as network file systems lock no folders. Raises OSError."""
    with (folder / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
