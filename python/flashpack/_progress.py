"""Long native calls: a worker thread runs the call, this one shows progress and can stop it.

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
from typing import Any, TypeVar

from ._native import Counter, new_counter

T = TypeVar("T")

# Below this a call is over before a bar could show or a thread would pay.
INLINE_BYTES = 64 << 20
_POLL_SECONDS = 0.1
_QUIET_SECONDS = 1.0


def run(work: Callable[[Counter | None], T], *, label: str, size: int, silent: bool | None) -> T:
    """Return `work(counter)`, with a progress bar once it has taken over a second.

    `size` is the number of bytes to go through: small calls run inline, with no counter. `silent`: True
    shows nothing, False always shows the bar, None shows it on a terminal. KeyboardInterrupt cancels the
    native call, waits until it has cleaned up, and is raised again.
    """
    if size < INLINE_BYTES:
        return work(None)
    counter = new_counter()
    future: Future[T] = Future()
    thread = threading.Thread(target=_settle, args=(future, lambda: work(counter)), name="flashpack")
    try:
        thread.start()  # inside: an interrupt can find it started and us not yet back
        _watch(future, counter, label, _wants_bar(silent))
    except BaseException:
        counter[2] = 1
        _wait_through_interrupts(thread)
        raise
    return future.result()


def _settle(future: Future[T], body: Callable[[], T]) -> None:
    try:
        result = body()
    except BaseException as error:  # noqa: BLE001 (handed to the waiting thread, whatever it is)
        future.set_exception(error)
    else:
        future.set_result(result)


def _wants_bar(silent: bool | None) -> bool:
    return sys.stderr.isatty() if silent is None else not silent


def _watch(future: Future[Any], counter: Counter, label: str, wants_bar: bool) -> None:
    started = time.monotonic()
    bar: Any = None
    try:
        while not wait([future], _POLL_SECONDS).done:
            if bar is None and wants_bar and time.monotonic() - started > _QUIET_SECONDS:
                bar = _new_bar(label)
            if bar is not None:
                _update(bar, counter)
    finally:
        if bar is not None:
            _update(bar, counter)
            bar.close()


def _new_bar(label: str) -> Any:
    tqdm: Any = importlib.import_module("tqdm")
    return tqdm.tqdm(desc=label, unit="B", unit_scale=True, unit_divisor=1024)


def _update(bar: Any, counter: Counter) -> None:
    bar.total = counter[1] or None
    bar.n = counter[0]
    bar.refresh()


def _wait_through_interrupts(thread: threading.Thread) -> None:
    """A second Ctrl-C must not leave a thread writing behind the caller's back."""
    while thread.is_alive():
        with suppress(KeyboardInterrupt):
            thread.join()
