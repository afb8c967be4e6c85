"""Running interpreters beside the one that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

TIMEOUT_SECONDS = 240


def environment(**changes: str) -> dict[str, str]:
    """The environment of a fresh interpreter that sees the same packages."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), **changes}


def python(
    *args: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    behind: Sequence[object] = (),
    timeout: float = TIMEOUT_SECONDS,
) -> CompletedProcess[str]:
    """Run the interpreter with `args`, whatever comes of it; `behind` is a command that runs it in turn."""
    return subprocess.run(
        list(map(str, [*behind, sys.executable, *args])),
        env=environment() if env is None else dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(done: CompletedProcess[str]) -> str:
    """What a program that must have succeeded wrote to its standard output."""
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
