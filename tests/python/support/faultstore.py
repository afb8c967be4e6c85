"""The store of tests/faultstore in a process of its own, and what it tells."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECRET = "secret-of-the-tests"
NOWHERE = {  # settings with which clients of stores find no settings, and ask no service of a cloud
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "HF_HUB_OFFLINE": "1",
}
PROGRAM = Path(__file__).resolve().parents[2] / "faultstore"


@dataclass(frozen=True)
class Request:
    """What came, and how much of an answer's body was sent; times are the server's clock."""

    connection: int
    method: str
    target: str
    range: str
    authorization: str  # its first word
    began: float
    status: int
    sent: int
    ended: float | None  # None: it is under way


class Store:
    """Buckets are folders of `folder`."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], port: int) -> None:
        self.folder = folder
        self.port = port
        self._process = process

    def url(self, key: str, scheme: str = "http") -> str:
        """The object's address for a client of plain HTTP."""
        return f"{scheme}://127.0.0.1:{self.port}/{key}"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What clients of S3 need to find it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def plan(self, *faults: dict[str, Any], **settings: Any) -> None:
        """From now on; see tests/faultstore/plan.py. What came before is forgotten."""
        self._command({"plan": {"faults": faults, **settings}})
        self.take()

    def take(self, key: str = "") -> list[Request]:
        """The requests since this was last asked; those whose target has `key` in it."""
        return [Request(**entry) for entry in self._command({"take": True}) if key in entry["target"]]

    def _command(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def sent(requests: list[Request]) -> int:
    return sum(request.sent for request in requests)


def most_in_flight(requests: list[Request]) -> int:
    times = sorted(
        [(each.began, 1) for each in requests] + [(each.ended, -1) for each in requests if each.ended]
    )
    most = now = 0
    for _, change in times:
        now += change
        most = max(most, now)
    return most


@contextmanager
def serving(folder: Path, certificate: Path | None = None) -> Iterator[Store]:
    """With `certificate` (and its key, in one file) it answers to TLS, too."""
    command = [sys.executable, "-I", PROGRAM, folder, *([certificate] if certificate else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Store(folder, process, int(process.stdout.readline()))
        finally:
            process.stdin.close()
