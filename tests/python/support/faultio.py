"""The library that makes the C library's calls fail, built on first use, and its controls."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from processes import environment

SOURCE = Path(__file__).parents[2] / "faultio" / "faults.c"
_LIBRARY = Path(__file__).parents[3] / "target" / "faultio" / "libfaults.so"


def library() -> Path:
    """The library to preload."""
    if not _LIBRARY.exists() or _LIBRARY.stat().st_mtime < SOURCE.stat().st_mtime:
        _LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        fresh = _LIBRARY.with_suffix(f".{os.getpid()}")
        compiler = shutil.which("cc") or "gcc"
        flags = ["-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", str(fresh), str(SOURCE), "-ldl"], check=True)
        fresh.replace(_LIBRARY)
    return _LIBRARY


def preload() -> str:
    """LD_PRELOAD of a process in which faults can be armed, beside what is preloaded already."""
    return " ".join([*os.environ.get("LD_PRELOAD", "").split(), str(library())])


def preloaded(**changes: str) -> dict[str, str]:
    """The environment of an interpreter in which faults can be armed."""
    return environment(LD_PRELOAD=preload(), **changes)


class Faults:
    """A context in which `rules` act on calls for files whose path contains `path`; see faults.c.

    Only where the library is preloaded. Afterwards `acts` is how often the last rule acted.
    """

    def __init__(self, rules: str, path: Path, other: Path | None = None) -> None:
        self.acts = 0
        self._arguments = (rules.encode(), bytes(path), bytes(other or Path()))
        self._library = ctypes.CDLL(None)

    def __enter__(self) -> Faults:
        self._library.faults_arm(*self._arguments)
        return self

    def __exit__(self, *error: object) -> None:
        self.acts = self._library.faults_disarm()


def at_every_call(rules: str, path: Path, other: Path | None = None) -> Iterator[Faults]:
    """Faults at the first call, at the second, … until a context ends without one.

    `rules` has N for the number of the call in its last rule.
    """
    for number in itertools.count(1):
        faults = Faults(rules.replace("N", str(number)), path, other)
        yield faults
        if faults.acts == 0:
            return


if __name__ == "__main__":
    print(library())
