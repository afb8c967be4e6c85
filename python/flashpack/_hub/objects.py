"""Folders of object stores: their small files, copied to a folder of this process. Needs no torch."""

from __future__ import annotations

import atexit
import errno
import fnmatch
import functools
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .._core import native
from .._core.paths import shown_url
from .._files.folder import is_plain_name


def fetch_objects(url: str, patterns: Iterable[str]) -> Path:
    """A local folder with the objects of the folder at `url` that match `patterns`, relative to it.

    Only the folders that patterns name are listed. If the name of one has `*`, all below `url` is listed, and
    `*` stands for slashes as well, as it does for huggingface_hub. The local folder is removed when the
    process ends. Raises FileNotFoundError if none matches, and what opening a URL raises.
    """
    base, _, query = url.partition("?")
    query = f"?{query}" if query else ""
    wanted: dict[str, list[str]] = {}
    split = [posixpath.split(pattern) for pattern in patterns]
    deep = any("*" in inside for inside, _ in split)
    for inside, last in split:
        wanted.setdefault("" if deep else inside, []).append(posixpath.join(inside, last) if deep else last)
    folder, found = _copies_of(url), False
    for inside, names in wanted.items():
        place = posixpath.join(base.rstrip("/"), inside)
        for entry in native.call("list", path=f"{place.rstrip('/')}/{query}", deep=deep):
            name: str = entry["name"]
            # A server may list anything: what is no plain name would be written outside of the folder.
            is_plain = all(map(is_plain_name, name.split("/") if deep else [name]))
            if is_plain and any(fnmatch.fnmatchcase(name, each) for each in names):
                found, source = True, f"{place.rstrip('/')}/{name}{query}"
                native.call("copy", path=source, destination=str(folder / inside / name))
    if not found:
        raise FileNotFoundError(errno.ENOENT, "Nothing that a model needs in the folder", shown_url(url))
    return folder


@functools.cache
def _copies_of(url: str) -> Path:  # noqa: ARG001 (each has its own)
    """The folder for copies of what lies at `url`."""
    folder = Path(tempfile.mkdtemp(prefix="flashpack-objects-"))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    """Remove the folder, unless this is a child process of the one that made it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
