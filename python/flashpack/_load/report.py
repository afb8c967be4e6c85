"""Where the time of a load went. Needs no torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._core.text import human_duration, rate_text, size_text
from . import html

STAGES = {
    "read": "reading",
    "hash": "checksums",
    "staging": "getting staging memory",
    "device": "waiting for the device",
    "queue": "queueing copies",
    "idle": "threads without work",
}
_TIMES = ("open", "wall", *STAGES)
_OF_THREADS = " of the threads' time"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What reads by URL took: requests, `retries` among them because others had failed, and bytes.

    `cached_bytes` came from a local copy. `connections` were in use at a time, `latency` is the shortest time
    in seconds from a request to its answer.
    """

    requests: int
    retries: int
    fetched_bytes: int
    cached_bytes: int
    connections: int
    latency: float

    @classmethod
    def of(cls, told: Mapping[str, Any] | None) -> Traffic | None:
        """What the native side told, `latency` in nanoseconds."""
        return told and cls(**{**told, "latency": told["latency"] / 1e9})  # type: ignore[return-value]

    def __str__(self) -> str:
        cached = f", {size_text(self.cached_bytes)} from the local copy" if self.cached_bytes else ""
        return (
            f"{self.requests} requests ({self.retries} repeated), up to {self.connections} at a time, "
            f"answered after {human_duration(self.latency)}: {size_text(self.fetched_bytes)} fetched{cached}"
        )


class Span(NamedTuple):
    """A thread in one stage, from when until when, in seconds since the load began to read."""

    thread: int
    stage: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What one load read, and its time in seconds.

    `bytes` were read from the file, padding included, and `verified_bytes` of them compared with checksums;
    what a mapped load leaves to be read on touch is not among them. `direct`: past the page cache;
    `from_disk`: more of the file than a few percent was not in it. `node`: the NUMA node that the readers
    stayed on; None if the machine has only one, or they ran anywhere. `wall` is the load's time, `open` the
    part that opening, parsing and planning took. The other times are summed over `threads` reader threads:
    `read`, `hash` (checksums), `staging` (getting buffers), `device` (waiting until copies to it gave a
    buffer back), `queue` (queueing them), `idle`.

    `traffic` is what a load by URL asked of its store since the model was opened; None for files.

    `limit` is what held the load up: "disk", "network", "page cache", "checksums", "device link",
    "staging memory" (pinning it, once a process), "index" (a file of many small tensors), or None for a load
    that had nothing to read. A load to a device returns when its last copies are queued; those are not in
    these times.

    `timeline` says what each thread did when, thread by thread, the stages named as the times here are; it is
    empty unless FLASHPACK_TIMELINE is 1. A notebook draws it.
    """

    bytes: int
    verified_bytes: int
    threads: int
    direct: bool
    from_disk: bool
    node: int | None
    open: float
    wall: float
    staging: float
    device: float
    read: float
    hash: float
    queue: float
    idle: float
    limit: str | None
    traffic: Traffic | None
    timeline: tuple[Span, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        lines = [line.strip() for line in self._lines() if not line.endswith(_OF_THREADS)]
        stages = {label: getattr(self, stage) for stage, label in STAGES.items()}
        spans = [(span.thread, STAGES[span.stage], span.began, span.ended) for span in self.timeline]
        return html.titled(
            "last load", html.table([line] for line in lines), html.bar(stages), html.rows(spans, [*stages])
        )

    def _lines(self) -> Iterator[str]:
        if self.limit is None:
            yield f"nothing to read: the load took {human_duration(self.wall)}"
            return
        where = "" if self.node is None else f" on NUMA node {self.node}"
        cache = f"{'past' if self.direct else 'through'} the page cache"
        way = f"{self.threads} threads{where} {'from the store' if self.traffic else cache}"
        time = f"{human_duration(self.wall)} ({rate_text(self.bytes, self.wall)})"
        yield f"{size_text(self.bytes)} read in {time} by {way}; {size_text(self.verified_bytes)} verified"
        yield f"  the limit was: {self.limit}"
        if self.traffic:
            yield f"  {self.traffic}"
        yield f"  {'opening and planning':<24}{human_duration(self.open):>10}"
        of_threads = sum(getattr(self, stage) for stage in STAGES)
        for stage, label in STAGES.items():
            spent: float = getattr(self, stage)
            if spent > 0:
                part = f"{spent / of_threads:>5.0%}{_OF_THREADS}"
                yield f"  {label:<24}{human_duration(spent):>10}{part}"


class _Last(threading.local):
    report: LoadReport | None = None


_last = _Last()


def last_load() -> LoadReport | None:
    """The report of the last load, or verification, that this thread has finished; None before the first."""
    return _last.report


def remember(told: Mapping[str, Any] | None) -> None:
    """Make what the native side told, times in nanoseconds, the calling thread's last load."""
    if told is not None:
        times = {name: told[name] / 1e9 for name in _TIMES}
        timeline = tuple(
            Span(thread, stage, began / 1e9, ended / 1e9) for thread, stage, began, ended in told["timeline"]
        )
        others = {"traffic": Traffic.of(told["traffic"]), "timeline": timeline}
        _last.report = LoadReport(**{**told, **times, **others})
