"""Small files in the metadata of a FlashPack file: as text, or as base64 where they are not UTF-8."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ..._core.errors import FlashPackError

_TEXT = "file:"
_BINARY = "base64:"


def embed_files(folder: Path) -> dict[str, str]:
    """Every file below `folder` as an entry of metadata, named by its path in it."""
    embedded: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name, data = path.relative_to(folder).as_posix(), path.read_bytes()
            try:
                embedded[_TEXT + name] = data.decode()
            except UnicodeDecodeError:
                embedded[_BINARY + name] = base64.b64encode(data).decode()
    return embedded


def restore_files(metadata: Mapping[str, str], folder: Path, source: Path) -> None:
    """Write the files embedded in the metadata of `source` back into `folder`, never outside of it.

    Raises FlashPackError for a name that is not a plain relative path, or for data that is not base64.
    """
    for key, value in metadata.items():
        kind, colon, name = key.partition(":")
        if kind + colon not in (_TEXT, _BINARY):
            continue  # the user's own
        target = folder.joinpath(*_parts(name, source))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(value.encode() if kind + colon == _TEXT else _decoded(name, value, source))


def _parts(name: str, source: Path) -> tuple[str, ...]:
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or any(letter in name for letter in "\\:\0")
    if unsafe or not path.parts or ".." in path.parts or str(path) != name:
        raise FlashPackError(f"{source}: the metadata names a file that is not below the pipeline: {name!r}")
    return path.parts


def _decoded(name: str, value: str, source: Path) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FlashPackError(f"{source}: the embedded file {name!r} is not base64: {error}") from error
