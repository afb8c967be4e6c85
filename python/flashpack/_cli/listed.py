"""A listing as lines."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import click

from .._core.text import counted, human_num_elements, printable, size_text
from .._inspect.listing import Listing, Total
from .output import table

_LONGEST_VALUE = 200


def one_by_one(listing: Listing, is_long: bool) -> Iterator[str]:
    """A line for each tensor, then all together; if `is_long` with where it lies."""
    heads = ["NAME", "DTYPE", "SHAPE", "SIZE"]
    size = functools.cache(size_text)  # of many tensors few differ in size
    facts = zip(*listing.tensors, strict=True) if listing.tensors else [()] * 6
    names, dtypes, shapes, sizes, files, _ = facts
    columns = [names, dtypes, [*map(str, shapes)], [*map(size, sizes)]]
    if is_long:
        heads.append("OFFSET")
        columns.append(
            ["-" if offset is None else str(offset) for offset in map(listing.offset, listing.tensors)]
        )
        if len(listing.files) > 1:
            heads.append("FILE")
            shown = [printable(PurePath(file.path).name) for file in listing.files]
            columns.append([shown[file] for file in files])
    yield from table(heads, columns, (3, 4))
    yield from closing(listing)


def in_groups(listing: Listing, depth: int, sort: str, reverse: bool) -> Iterator[str]:
    """A line for all tensors whose names have the same beginning, then all together."""
    groups = list(listing.groups(depth).items())
    if sort == "size":
        groups.sort(key=lambda group: group[1].bytes, reverse=not reverse)
    totals = [total for _, total in groups]
    columns = [
        [prefix for prefix, _ in groups],
        [str(total.tensors) for total in totals],
        [human_num_elements(total.elements) for total in totals],
        [size_text(total.bytes) for total in totals],
        [", ".join(total.dtypes) for total in totals],
    ]
    yield from table(["PREFIX", "TENSORS", "ELEMENTS", "SIZE", "DTYPES"], columns, (1, 2, 3))
    yield from closing(listing)


def summary(listing: Listing, footer: dict[str, Any]) -> Iterator[str]:
    """What a model is, in a few lines for people."""
    total = listing.total()
    files = f"1 file of {size_text(listing.files[0].bytes)}"
    if len(listing.files) > 1:
        files = f"{len(listing.files)} files of {size_text(sum(file.bytes for file in listing.files))}"
    if any(file.compressed for file in listing.files):
        files += ", compressed"
    checksums, signature = footer.get("checksums"), footer.get("signature")
    unsigned = "none" if len(listing.files) == 1 else "each file may have one, see `flashpack verify --key`"
    every = f", one for each {size_text(checksums['chunk_bytes'])}" if checksums else ""
    facts = {
        "tensors": f"{_amount(total)}: {by_dtype(total)}",
        "size": f"{size_text(total.bytes)} of tensors in {files}",
        "checksums": f"{listing.checksums or 'none: damage cannot be found'}{every}",
        "signature": f"{signature['algorithm']}, see `flashpack verify --key`" if signature else unsigned,
    }
    yield click.style(printable(listing.path), bold=True)
    for label, text in facts.items():
        yield f"  {label:<11}{printable(text)}"
    for number, (key, value) in enumerate(listing.metadata.items()):
        yield f"  {'' if number else 'metadata':<11}{printable(key)}: {_clipped(printable(value))}"


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}… ({len(text)} characters)"


def closing(listing: Listing) -> Iterator[str]:
    """All tensors together."""
    total = listing.total()
    yield click.style(f"{_amount(total)}, {size_text(total.bytes)}: {by_dtype(total)}", bold=True)


def _amount(total: Total) -> str:
    return f"{counted(total.tensors, 'tensor')}, {human_num_elements(total.elements)} elements"


def by_dtype(total: Total) -> str:
    """The bytes of each dtype, the largest first."""
    sizes = sorted(total.dtypes.items(), key=lambda item: -item[1])
    return ", ".join(f"{dtype} {size_text(size)}" for dtype, size in sizes)
