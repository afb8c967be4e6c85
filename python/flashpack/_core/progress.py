"""Long native calls: a worker thread runs the call, this one shows progress and can stop it; or the reverse.

The native side cannot see Ctrl-C and cannot draw; it only fills a counter and looks at its cancel word.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from .native import Counter, in_thread, new_counter, settle
from .text import is_dumb, is_open

T = TypeVar("T")

# How much of its progress a call shows; see `run`.
Silent: TypeAlias = bool | Callable[[int, int], None] | None

# Below this a call is over before a bar could show or a thread would pay.
INLINE_BYTES = 64 << 20
_POLL_SECONDS = 0.1
_QUIET_SECONDS = 1.0
# Labels of work whose last step is to flush files.
_WRITING = frozenset({"Converting", "Packing", "Reverting", "Signing", "Writing"})
_ENDING = "{desc} [{elapsed}]"


def run(
    work: Callable[[Counter | None], T], *, label: str, size: int, silent: Silent, here: bool = False
) -> T:
    """Return `work(counter)`, with a progress bar once it has taken over a second.

    `size` is the number of bytes to go through: small calls run inline, with no counter. `silent`: True
    shows nothing, False always shows the bar, None shows it on a terminal, and a callable is told the bytes
    done and the bytes in all, ten times a second and at the end. KeyboardInterrupt, or what the callable
    raises, ends the work as `in_thread` says.

    `here` is for work that belongs to this thread. Another one then shows the progress and calls `silent`;
    KeyboardInterrupt is raised when the work is over, as Python handles signals in no other way.
    """
    total = size

    def watch(future: Future[T], counter: Counter) -> None:
        nonlocal total
        _watch(future, counter, label, silent)
        total = counter[1]

    run_watched = _run_here if here else in_thread
    result = work(None) if size < INLINE_BYTES else run_watched(work, watch)
    if callable(silent):
        silent(total, total)
    return result


def _run_here(work: Callable[[Counter | None], T], watch: Callable[[Future[T], Counter], object]) -> T:
    counter = new_counter()
    future: Future[T] = Future()
    watched: Future[None] = Future()

    def look() -> None:
        try:
            watch(future, counter)
        except BaseException:
            counter[2] = 1
            raise

    watcher = threading.Thread(target=settle, args=(watched, look), name="flashpack")
    try:
        watcher.start()
    except RuntimeError:  # as in `in_thread`
        return work(None)
    settle(future, lambda: work(counter))
    watched.result()  # first, as what stopped the work says more than that it was stopped
    return future.result()


def wants_bar(silent: Silent) -> bool:
    """Whether work that is this silent shows a bar, on standard error."""
    if callable(silent) or not is_open(sys.stderr):
        return False
    return sys.stderr.isatty() and not is_dumb() if silent is None else not silent


def _watch(future: Future[Any], counter: Counter, label: str, silent: Silent) -> None:
    started = time.monotonic()
    shows_bar = wants_bar(silent)
    bar: _Bar | None = None
    try:
        while not wait([future], _POLL_SECONDS).done:
            if shows_bar and time.monotonic() - started > _QUIET_SECONDS:
                with _unheard():
                    bar = _Bar(label, started) if bar is None else bar
                    bar.update(counter)
            if callable(silent):
                silent(counter[0], counter[1])
    finally:
        if bar is not None:
            with _unheard():
                bar.close(counter)


def _unheard() -> suppress:
    """What cannot be shown is no reason to stop the work: a closed stream, or one that lacks a character."""
    return suppress(OSError, ValueError)


class _Bar:
    """A bar of work that began at `started`, by the monotonic clock: its rate is of all the time since."""

    def __init__(self, label: str, started: float) -> None:
        tqdm: Any = importlib.import_module("tqdm")
        self._bar = tqdm.tqdm(desc=label, unit="B", unit_scale=True, smoothing=0, delay=1e-9)
        self._bar.start_t -= time.monotonic() - started
        self._label = label

    def update(self, counter: Counter) -> None:
        """Show how far the work is; when all bytes are written, that the disk is waited for."""
        bar, (done, total, _) = self._bar, counter
        if done < bar.n:  # its next part has begun, such as writing after verifying
            bar.start_t = bar._time()
        bar.n, bar.total = done, total or None
        if self._label in _WRITING and 0 < total <= done:
            bar.desc, bar.bar_format = f"{self._label}: all is written, waiting for the disk", _ENDING
        bar.refresh()

    def close(self, counter: Counter) -> None:
        """Show the end."""
        bar, (done, total, _) = self._bar, counter
        bar.n, bar.total, bar.desc, bar.bar_format = done, total or None, self._label, None
        bar.refresh()
        bar.close()
