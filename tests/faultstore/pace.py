"""When bytes may go out: a latency, a rate for each answer and one for all of them."""

from __future__ import annotations

import threading
import time

_MOST_BEHIND_SECONDS = 0.05  # what a busy machine delays is caught up, up to here


class Pace:
    """Waits shared by all answers; a rate of 0 is no limit. Rates are bytes a second."""

    def __init__(self, latency: float = 0.0, connection_rate: float = 0.0, total_rate: float = 0.0) -> None:
        self.latency = latency
        self.connection_rate = connection_rate
        self.total_rate = total_rate
        self._busy_until = 0.0
        self._lock = threading.Lock()

    def flow(self, arrived: float) -> Flow:
        """The bytes of an answer to a request that arrived then."""
        return Flow(self, arrived + self.latency)

    def share(self, start: float, count: int) -> float:
        """When so many bytes that are ready at `start` have gone through what all answers share."""
        if not self.total_rate:
            return start
        with self._lock:
            self._busy_until = max(start, self._busy_until) + count / self.total_rate
            return self._busy_until


class Flow:
    """One answer on its way."""

    def __init__(self, pace: Pace, at: float) -> None:
        self._pace = pace
        self._at = at  # when all so far was due

    def wait(self, count: int = 0) -> None:
        """Returns when the next `count` bytes are due."""
        start = max(self._at, time.monotonic() - _MOST_BEHIND_SECONDS)
        rate = self._pace.connection_rate
        alone = start + count / rate if rate else start
        self._at = max(alone, self._pace.share(start, count))
        time.sleep(max(0.0, self._at - time.monotonic()))
