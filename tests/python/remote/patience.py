"""Calls that must end, whatever the server does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SECONDS = 60.0


def within(call: Callable[[], T], seconds: float = SECONDS) -> T:
    """What the call gives or raises; AssertionError if that takes longer, as it does for one that hangs."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 (raised again below)
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    assert results, f"no end after {seconds} seconds"
    return results[0]
