"""A listing as lines, and a footer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import click

from .._core.index import blocks_of
from .._core.text import counted, human_num_elements, printable, size_text
from .._inspect.listing import Listing, Total
from .._save.sign import fingerprint_of
from .output import table

_LONGEST_VALUE = 200
_LISTS = ("macroblocks", "index")
_DIGITS = {"xxh3_64": 16, "blake3": 64}  # of a digest


def one_by_one(listing: Listing, is_long: bool) -> Iterator[str]:
    """A line for each tensor, then all together; if `is_long` with where it lies."""
    heads = ["NAME", "DTYPE", "SHAPE", "SIZE"]
    names = [name for name, _, _, _ in listing.tensors]
    kinds = [kind for _, kind, _, _ in listing.tensors]
    columns = [
        [kind.dtype for kind in listing.kinds],
        [str(kind.shape) for kind in listing.kinds],
        [size_text(kind.bytes) for kind in listing.kinds],
    ]
    if is_long:
        columns = [[texts[kind] for kind in kinds] for texts in columns]
        heads.append("OFFSET")
        columns.append(
            ["-" if offset is None else str(offset) for offset in map(listing.offset, listing.tensors)]
        )
        if len(listing.files) > 1:
            heads.append("FILE")
            shown = [printable(PurePath(file.path).name) for file in listing.files]
            columns.append([shown[file] for _, _, file, _ in listing.tensors])
    yield from table(heads, [names, *columns], (3, 4), None if is_long else kinds)
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


def describe(footer: dict[str, Any]) -> Iterator[str]:
    """Keys and values, then macroblocks (bytes) and, when the footer has it, the index (elements).

    What is not printable in the file's own words is escaped.
    """
    for key, value in footer.items():
        if key not in _LISTS:
            yield f"{_key(key)}: {printable(_brief(key, value))}"
    if "macroblocks" in footer:
        yield f"{_key('macroblocks')}:"
        yield from _macroblocks(footer["macroblocks"], footer.get("encoding"))
    if "index" in footer:
        yield f"{_key('index')}:"
        yield from _index(footer)


def _key(text: str) -> str:
    return click.style(printable(text), fg="green")


def _number(value: int) -> str:
    return click.style(str(value), fg="magenta")


def _brief(key: str, value: Any) -> Any:
    """The digests of a large file would fill the screen: say how many. Of a signature say whose."""
    if key == "checksums" and value:
        count = len(value["digests"]) // _DIGITS.get(value["algorithm"], 16)
        return f"{value['algorithm']}, {counted(count, 'digest')} of {value['chunk_bytes']} bytes each"
    if key == "encoding" and value:
        lengths = [length for run in value["frames"] for length in run["lengths"]]
        return (
            f"{sum(lengths)} bytes in {counted(len(lengths), 'frame')}"
            f" of {value['chunk_bytes']} bytes of payload each"
        )
    if key == "signature" and value and value["algorithm"] == "ed25519":
        signer = fingerprint_of(value["public_key"])
        return f"ed25519, said to be by the key {signer} (`flashpack verify --key` tells)"
    return value


class Chunks:
    """The chunks of a compressed payload: the codec of each and the length of its frame."""

    def __init__(self, encoding: dict[str, Any], payload: int) -> None:
        self._frames = [(run["codec"], length) for run in encoding["frames"] for length in run["lengths"]]
        self._bytes: int = encoding["chunk_bytes"]
        self._payload = payload

    def summary(self, start: int, end: int) -> str:
        """How many times fewer bytes than from `start` to `end` are stored, and by which codecs.

        Of a frame that a chunk of two macroblocks is stored in, each has its part.
        """
        stored, codecs = 0.0, set()
        for number in range(start // self._bytes, (end - 1) // self._bytes + 1):
            first = number * self._bytes
            last = min(first + self._bytes, self._payload)
            codec, length = self._frames[number]
            stored += length * (min(end, last) - max(start, first)) / (last - first)
            codecs.add(codec)
        return f"{(end - start) / stored:.2f} times fewer bytes by {', '.join(sorted(codecs))}"


def _macroblocks(blocks: list[dict[str, Any]], encoding: dict[str, Any] | None) -> Iterator[str]:
    payload = max((block["offset_bytes"] + block["length_bytes"] for block in blocks), default=0)
    chunks = None if encoding is None else Chunks(encoding, payload)
    width = len(str(payload))
    dtype_width = max((len(block["dtype"]) for block in blocks), default=0)
    for number, block in enumerate(blocks):
        start = block["offset_bytes"]
        end = start + block["length_bytes"]
        stored = "" if chunks is None or start == end else f" {chunks.summary(start, end)}"
        yield f"  {_number(number)}: {block['dtype']:{dtype_width}} {start:0{width}}:{end:0{width}}{stored}"


def _index(footer: dict[str, Any]) -> Iterator[str]:
    """Records in the order they lie in the file, under a line for each macroblock."""
    blocks = blocks_of(footer)
    width = len(str(max((block.length for block in blocks), default=0)))
    current = None
    records = sorted(footer["index"], key=lambda record: (record.get("macroblock", 0), record["offset"]))
    for number, record in enumerate(records):
        block = record.get("macroblock", 0)
        if block != current:
            current = block
            yield f"  {click.style(f'macroblock{block}', fg='cyan')}: {blocks[block].dtype}"
        start, end = record["offset"], record["offset"] + record["length"]
        name = click.style(printable(record["name"]), fg="blue")
        yield f"  {_number(number)}: {start:0{width}}:{end:0{width}} {name} {record['shape']}"
