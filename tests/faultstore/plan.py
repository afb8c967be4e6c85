"""What the server does beside answering, as its user says in JSON."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pace import Pace

KINDS = (
    "reset",  # the connection is reset before an answer
    "silence",  # no answer
    "status",  # an error: `status`, with Retry-After: `retry_after`
    "expire",  # 403, as for a signature that has expired
    "cut",  # the connection ends after `after` bytes of the body
    "stall",  # nothing comes after `after` bytes of the body
    "short",  # half the body, with the Content-Length of that
    "flip",  # the byte `at` of the object, or the middle one of the body, is another
    "change",  # the object is the one of its name and ".changed", if there is one
    "whole",  # 200 and the whole object, whatever Range says
    "ok",  # 200 for a range
    "untagged",  # no ETag
    "weak",  # a weak ETag, and no Last-Modified
    "redirect",  # 302 to a signed path of another host, which is 403 from request `expires` on if older
)


@dataclass(frozen=True)
class Fault:
    """Acts on `times` requests that it is for (0: all) from the one of this number on, counted from 1."""

    kind: str
    first: int = 1
    times: int = 1
    method: str = ""  # only requests of this method
    key: str = ""  # only requests whose path has this in it
    after: int = 0
    at: int | None = None
    status: int = 503
    retry_after: int | None = None
    expires: int = 0  # 0: never

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind of fault")

    def is_for(self, method: str, key: str) -> bool:
        return (not self.method or self.method == method) and self.key in key

    def acts_at(self, number: int) -> bool:
        return self.first <= number and (self.times == 0 or number < self.first + self.times)


class Plan:
    """Faults, rates, and who is let in; counts the requests that each fault is for."""

    def __init__(self, told: Mapping[str, Any] | None = None) -> None:
        told = dict(told or {})
        self.faults = [Fault(**fault) for fault in told.pop("faults", ())]
        self.signed: bool = told.pop("signed", False)  # S3's signature is asked for, though not checked
        self.token: str = told.pop("token", "")  # the bearer token that is asked for
        self.headers: dict[str, str] = told.pop("headers", {})  # of all answers with an object
        self.pace = Pace(
            told.pop("latency_ms", 0) / 1e3,
            told.pop("connection_mb_per_s", 0) * 1e6,
            told.pop("total_mb_per_s", 0) * 1e6,
        )
        if told:
            raise ValueError(f"{', '.join(told)}: no part of a plan")
        self._seen = [0] * len(self.faults)
        self._signed: list[int] = []  # how many requests the fault had seen before it
        self._lock = threading.Lock()

    def act(self, method: str, key: str) -> dict[str, Fault]:
        """The faults of a request, by kind."""
        acting = {}
        with self._lock:
            for number, fault in enumerate(self.faults):
                if fault.is_for(method, key):
                    self._seen[number] += 1
                    if fault.acts_at(self._seen[number]):
                        acting[fault.kind] = fault
        return acting

    def sign(self, fault: Fault) -> int:
        """The number of a new signature."""
        with self._lock:
            self._signed.append(self._seen[self.faults.index(fault)])
            return len(self._signed) - 1

    def is_good(self, number: int, fault: Fault | None) -> bool:
        """Whether the signature is one, and still good."""
        with self._lock:
            if fault is None or not 0 <= number < len(self._signed):
                return False
            seen = self._seen[self.faults.index(fault)]
            return not self._signed[number] < fault.expires <= seen
