"""The files of a folder as objects: /bucket/key is the file `key` of the folder `bucket`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

UPLOADS = ".uploads"  # the folder of what is not an object yet


class RangeError(Exception):
    """No byte of the object is in the range."""


@dataclass(frozen=True)
class Found:
    """An object as it is now."""

    path: Path
    size: int
    tag: str
    changed: str

    @classmethod
    def of(cls, path: Path) -> Found | None:
        if not path.is_file():
            return None
        about = path.stat()
        identity = f"{path} {about.st_ino} {about.st_size} {about.st_mtime_ns}"
        tag = f'"{hashlib.md5(identity.encode()).hexdigest()}"'
        return cls(path, about.st_size, tag, formatdate(about.st_mtime, usegmt=True))

    def meets(self, headers: Mapping[str, str]) -> bool:
        """Whether it is the one that the request's conditions are for."""
        since = headers.get("if-unmodified-since", self.changed)
        is_older = parsedate_to_datetime(self.changed) <= parsedate_to_datetime(since)
        return is_older and headers.get("if-match", self.tag) in (self.tag, "*")


class Objects:
    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def path(self, key: str) -> Path:
        """Where the object lies. Raises ValueError for a key that leads out of the folder."""
        path = self.root.joinpath(key.lstrip("/"))
        if ".." in path.parts or "\0" in key:
            raise ValueError(key)
        return path

    def find(self, key: str, *, changed: bool = False) -> Found | None:
        path = self.path(key)
        other = path.with_name(f"{path.name}.changed")
        return Found.of(other if changed and other.is_file() else path)

    def put(self, key: str, parts: list[Path]) -> Found:
        """Makes the parts, in this order, the object; they are removed."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=self.folder())
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
                part.unlink()
        Path(fresh).replace(path)
        found = Found.of(path)
        assert found is not None
        return found

    def folder(self) -> Path:
        """Where parts are kept until they are an object."""
        folder = self.root / UPLOADS
        folder.mkdir(exist_ok=True)
        return folder

    def keys(self, bucket: str) -> Iterator[str]:
        """The keys of a bucket, sorted."""
        folder = self.path(bucket)
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        yield from sorted(key for key in found if not key.startswith(UPLOADS))


def span(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the number of bytes that a Range header asks for; None if it asks for all."""
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if not wanted or wanted[0] == "bytes=-":
        return None
    if not wanted[1]:
        count = min(int(wanted[2]), size)
        first = size - count
    else:
        first = int(wanted[1])
        count = min(int(wanted[2] or size), size - 1) - first + 1
    if count <= 0:
        raise RangeError
    return first, count
