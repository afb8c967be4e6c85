"""Which rank reads which bytes of a file, and in which order: pure functions of sizes. Needs no torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from ..constants import DEFAULT_SHARD_BYTES, SHARD_STRATEGY_CONTIGUOUS

BROADCAST = "broadcast"
# Several windows in each rank's part, so that reading one overlaps sending another; no smaller ones than
# these, as each takes a round of messages.
_WINDOWS_OF_A_PART = 4
_MIN_WINDOW_BYTES = 16 << 20


Range: TypeAlias = tuple[int, int]


class Span(NamedTuple):
    """Bytes `start` to `stop` of the file, which lie at `offset` of the image."""

    start: int
    stop: int
    offset: int


class Window(NamedTuple):
    """Bytes `start` to `stop` of the image, which rank `owner` reads for all."""

    owner: int
    start: int
    stop: int


@dataclass(frozen=True)
class Image:
    """The wanted parts of a file, one after another, each as far from a unit's beginning as in the file."""

    spans: list[Span]
    bytes: int

    @classmethod
    def of(cls, ranges: Iterable[Range], unit: int, whole: Sequence[Range]) -> Image:
        """The units (bytes) that `ranges` of the file touch, as far as they lie in the same range of `whole`.

        Each of `ranges` lies in one of these, which are sorted and do not overlap.
        """
        spans: list[Span] = []
        for start, stop in sorted(each for each in ranges if each[0] < each[1]):
            first, end = whole[bisect_right(whole, start, key=lambda each: each[0]) - 1]
            start, stop = max(start - start % unit, first), min(stop + -stop % unit, end)
            last = spans[-1] if spans else Span(0, 0, 0)
            if spans and start <= last.stop:
                spans[-1] = last._replace(stop=max(last.stop, stop))
            else:
                end = last.offset + last.stop - last.start
                spans.append(Span(start, stop, _round_up(end, unit) + start % unit))
        total = spans[-1].offset + spans[-1].stop - spans[-1].start if spans else 0
        return cls(spans, total)

    def offset_of(self, position: int) -> int:
        """Where the image has the file's byte `position`, which it must hold."""
        span = self.spans[bisect_right(self.spans, position, key=lambda span: span.start) - 1]
        return span.offset + position - span.start

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(place in the file, start, stop) of each piece of the image from `start` to `stop`."""
        for span in self.spans:
            first = max(start, span.offset)
            last = min(stop, span.offset + span.stop - span.start)
            if first < last:
                yield span.start + first - span.offset, first, last


def plan_steps(
    total: int, ranks: int, mode: str, *, src: int, unit: int, window_bytes: int | None
) -> list[list[Window]]:
    """The windows of an image of `total` bytes, step by step: those of one step are read at the same time.

    `mode`: "broadcast": rank `src` reads everything; "contiguous": each rank one part; "windows": they take
    turns. `window_bytes` are rounded up to a multiple of `unit`; None chooses.
    """
    part = _round_up(total if mode == BROADCAST else -(-total // ranks), unit)
    if window_bytes is None:
        window_bytes = min(DEFAULT_SHARD_BYTES, max(_MIN_WINDOW_BYTES, part // _WINDOWS_OF_A_PART))
    window = min(_round_up(window_bytes, unit), max(part, unit))
    if mode == BROADCAST:
        return [[Window(src, start, min(start + window, total))] for start in range(0, total, window)]
    steps = []
    for step in range(-(-part // window)):
        if mode == SHARD_STRATEGY_CONTIGUOUS:
            starts = [rank * part + step * window for rank in range(ranks)]
            stops = [min(start + window, (rank + 1) * part) for rank, start in enumerate(starts)]
        else:
            starts = [(step * ranks + rank) * window for rank in range(ranks)]
            stops = [start + window for start in starts]
        windows = (Window(rank, *place) for rank, place in enumerate(zip(starts, stops, strict=True)))
        steps.append([each._replace(stop=min(each.stop, total)) for each in windows if each.start < total])
    return steps


def _round_up(value: int, unit: int) -> int:
    return value + -value % unit
