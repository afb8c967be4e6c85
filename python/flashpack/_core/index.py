"""The index of a model, as its footer says it: blocks, records. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .constants import FILE_FORMAT_V3


class Block(NamedTuple):
    """One macroblock: `length` elements of `dtype` (torch's name)."""

    dtype: str
    length: int


def unverified_note(shown: str, footer: Mapping[str, Any]) -> str | None:
    """What to say of a model that has bytes without checksums; None for any other."""
    checksums = footer.get("checksums")
    if checksums is None:
        return f"{shown}: the file has no checksums, nothing was verified"
    unverified = checksums.get("unverified_bytes", 0)
    return f"{shown}: {unverified} bytes are in files without checksums" if unverified else None


def blocks_of(footer: dict[str, Any]) -> list[Block]:
    """The macroblocks of any format, in the order that records count them."""
    if footer.get("format") != FILE_FORMAT_V3:
        return [Block(block["dtype"], int(block["length_elems"])) for block in footer["macroblocks"]]
    return [Block(footer["target_dtype"], int(footer["total_elems"]))]


def records_of(footer: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(name, shape, torch's dtype name) of every record, in file order."""
    dtypes = [block.dtype for block in blocks_of(footer)]
    for record in footer["index"]:
        yield record["name"], tuple(record["shape"]), dtypes[record.get("macroblock", 0)]
