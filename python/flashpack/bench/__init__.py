"""`flashpack bench PATH`: how fast your file loads here, and how near that is to the limit.

What every way to load brings is first compared with the file's own bytes. Then raw limits and loads take
turns. Printed are the best of each limit, since other work can only hide it, and the median of each load.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .._core import native
from .._core.paths import is_url
from .._core.text import human_duration, rate_text
from .._inspect.explain import Explanation, explain
from .._inspect.listing import Listing
from .._load.report import LoadReport, last_load

if TYPE_CHECKING:
    from .loads import Case

# Raw reads into fresh memory take as much as they read: at most this part of what is free.
_MEMORY_PART = 0.4
_TIMELINE = "FLASHPACK_TIMELINE"


def bench(
    path: str, device: str | None = None, rounds: int = 5, cold: bool = False, plot: str | None = None
) -> Iterator[str]:
    """Measure, and yield the lines of the report as they are known. `path` may be a URL.

    `cold`: the files are dropped from the page cache before every measurement. `plot`: a file for a picture.
    Raises FlashPackError for a file that is not sound, OSError, RuntimeError for a load of wrong bytes,
    ValueError for a cold URL, several files by URL and no bytes, ImportError without what draws.
    """
    if cold and is_url(path):
        raise ValueError("--cold is for files: the page cache holds nothing of a URL")
    listing = Listing.read(path)  # refuses what is no model before torch is imported
    if is_url(path) and len(listing.files) > 1:
        raise ValueError(f"{listing.path}: stands for {len(listing.files)} objects: name one of them")
    if not listing.total().bytes:
        raise ValueError(f"{listing.path}: its tensors have no bytes: there is nothing to measure")
    from .loads import cases, check_bytes, drop_from_cache
    from .plot import draw, require

    if plot is not None:
        require()
    files = [file.path for file in listing.files] if cold else []
    check_bytes(path, device, listing)
    yield "every load brings the file's own bytes; now measuring"
    drop_from_cache(files)
    planned = explain(path, eager=True)
    yield from ("", str(planned), "")
    loads = list(cases(path, device, listing.checksums))
    largest = max(listing.files, key=lambda file: file.bytes)  # raw reads are of one file
    size = min(planned.payload_bytes, largest.bytes, int(_free_memory() * _MEMORY_PART))
    raw = _raw_limits(path if is_url(path) else largest.path, planned, size, device, cold)
    work = {**raw, **{case.name: case.load for case in loads}}
    with _timeline(plot is not None):
        times, reports = _take_turns(work, rounds, lambda: drop_from_cache(files))
    medians = {case.name: statistics.median(times[case.name]) for case in loads}
    rates = {name: size / min(times[name]) for name in raw}
    yield f"limits: the best of {rounds} rounds; loads: medians of {rounds}"
    yield from _table(rates, medians, loads, planned)
    last = loads[-1].name
    report = reports[last][times[last].index(statistics.median_low(times[last]))]
    if plot is not None:
        loaded = {name: planned.payload_bytes / seconds for name, seconds in medians.items()}
        draw(plot, rates, loaded, last, report)
        yield f"the picture is {plot}"
    yield from ("", f"where the time went, {last}:", str(report))


@contextmanager
def _timeline(wanted: bool) -> Iterator[None]:
    """Loads keep what each thread did when, if that is wanted."""
    before = os.environ.get(_TIMELINE)
    if wanted:
        os.environ[_TIMELINE] = "1"
    try:
        yield
    finally:
        if before is not None:
            os.environ[_TIMELINE] = before
        elif wanted:
            del os.environ[_TIMELINE]


def _take_turns(
    work: Mapping[str, Callable[[], object]], rounds: int, prepare: Callable[[], None]
) -> tuple[dict[str, list[float]], dict[str, list[LoadReport | None]]]:
    """Seconds, and what the last load then said, of each piece of work in each round."""
    times: dict[str, list[float]] = {name: [] for name in work}
    reports: dict[str, list[LoadReport | None]] = {name: [] for name in work}
    for _ in range(rounds):
        for name in random.sample(list(work), len(work)):  # whose turn follows whose must not matter
            prepare()
            times[name].append(_time(work[name]))
            reports[name].append(last_load())
    return times, reports


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _time(run: Callable[[], object]) -> float:
    """Seconds until `run` returns; the raw limits time their own work and return seconds."""
    started = time.perf_counter()
    result = run()
    passed = time.perf_counter() - started
    return result if isinstance(result, float) else passed


def _raw_limits(
    path: str, planned: Explanation, size: int, device: str | None, cold: bool
) -> Mapping[str, Callable[[], object]]:
    """What bounds the loads, as functions that take as long as moving `size` bytes does."""
    from .loads import link_rate, touch_mapping

    threads = max(planned.threads, 1)
    copying = min(threads, len(os.sched_getaffinity(0)))

    def measuring(**how: Any) -> Callable[[], float]:
        return lambda: float(native.call("measure", bytes=size, **how))

    reading: dict[str, Any] = {"path": path, "threads": threads, "direct": planned.direct}
    raw: dict[str, Callable[[], object]] = {"copy in memory": measuring(threads=copying)}
    if is_url(path):
        raw["network"] = measuring(**{**reading, "threads": max(planned.max_threads, 1)})
    elif cold:
        raw["disk"] = measuring(**reading)
    else:
        raw["page cache"] = measuring(**reading)
        raw["page cache, same memory"] = measuring(**reading, reused=True)
        raw["touching a mapping"] = lambda: touch_mapping(path, size)
    if device is not None and device.startswith("cuda"):
        raw["device link"] = lambda: size / link_rate(device)
    return raw


def _table(
    rates: Mapping[str, float], medians: Mapping[str, float], loads: list[Case], planned: Explanation
) -> Iterator[str]:
    for name, rate in rates.items():
        yield f"{name:<26}{rate_text(rate, 1):>12}"
    for case in loads:
        seconds = medians[case.name]
        rate = planned.payload_bytes / seconds
        limit = min((name for name in case.bounds if name in rates), key=lambda name: rates[name])
        nearness = f"{rate / rates[limit]:.2f} x the limit ({limit})"
        yield f"{case.name:<26}{rate_text(rate, 1):>12}{human_duration(seconds):>12}  {nearness}"
