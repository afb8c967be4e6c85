"""What a file says about itself: footer, blocks and checksums. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import _native
from ._errors import FlashPackError
from ._paths import StrPath, text_path
from ._progress import run
from ._report import remember
from ._sources import ModelPath, model_path, size_of
from .constants import FILE_FORMAT_V4


@dataclass(frozen=True, slots=True)
class Block:
    """One macroblock: `length` elements of `dtype` (torch's name), `offset_bytes` into the file."""

    dtype: str
    offset_bytes: int
    length: int


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of `verify_file`: sizes in bytes; `algorithm` is None for a file without checksums, "blake3 and
    xxh3_64" for a model whose files differ in it. `verified_bytes` counts the files that have checksums.

    `signed_by` is the fingerprint of the key that signed it, None if none did. It proves something only if
    `verify_file` was given that key: anybody can sign with a key of their own.
    """

    payload_bytes: int
    verified_bytes: int
    algorithm: str | None
    signed_by: str | None = None


def get_flashpack_file_metadata(path: StrPath) -> dict[str, Any]:
    """The footer of the file as a dict, after every structural check of the format.

    Raises FlashPackError (a ValueError) for a file that is not sound, OSError for one that cannot be read.
    """
    footer: dict[str, Any] = _native.call("footer", path=text_path(path))
    return footer


def read_index(path: str) -> dict[str, Any]:
    """What a model says of itself as the footer of a FlashPack file says it; `path` is as from `model_path`.

    Of several files the offsets count through all of them. Raises as `load_file`.
    """
    index: dict[str, Any] = _native.call("index", path=path)
    return index


def is_flashpack_file(path: StrPath) -> bool:
    """Whether there is a file and it is sound FlashPack. Raises OSError for one that cannot be read."""
    try:
        get_flashpack_file_metadata(path)
    except (FlashPackError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    return True


def verify_file(path: ModelPath, key: StrPath | None = None, *, silent: bool | None = True) -> Verification:
    """Check structure and every checksum of the file, or of all of a model's.

    With `key`, a public key as `openssl pkey -pubout` writes it, each file must be signed by its holder; see
    `sign_file`. `last_load` then tells where its time went. Raises ChecksumError naming the damaged range,
    SignatureError, FlashPackError for a broken structure, ValueError for what is no such key, OSError.
    """
    text = model_path(path)
    keys = {} if key is None else {"key": text_path(key)}
    result = run(
        lambda counter: _native.call("verify", counter, path=text, **keys),
        label="Verifying",
        size=size_of(text),
        silent=silent,
    )
    remember(result.pop("load"))
    return Verification(**result)


def unverified_note(shown: str, footer: Mapping[str, Any]) -> str | None:
    """What to say of a model that has bytes without checksums; None for any other."""
    checksums = footer.get("checksums")
    if checksums is None:
        return f"{shown}: the file has no checksums, nothing was verified"
    unverified = checksums.get("unverified_bytes", 0)
    return f"{shown}: {unverified} bytes are in files without checksums" if unverified else None


def blocks_of(footer: dict[str, Any]) -> list[Block]:
    """The macroblocks of either format, in the order that records count them."""
    if footer.get("format") == FILE_FORMAT_V4:
        return [
            Block(block["dtype"], int(block["offset_bytes"]), int(block["length_elems"]))
            for block in footer["macroblocks"]
        ]
    return [Block(footer["target_dtype"], 0, int(footer["total_elems"]))]


def records_of(footer: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(name, shape, torch's dtype name) of every record, in file order."""
    dtypes = [block.dtype for block in blocks_of(footer)]
    for record in footer["index"]:
        yield record["name"], tuple(record["shape"]), dtypes[record.get("macroblock", 0)]
