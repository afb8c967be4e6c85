"""Control groups that limit memory, of either version."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# By version: the limit, the most that was used, and where the kills are counted.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"),
    2: ("memory.max", "memory.peak", "memory.events"),
}


@dataclass(frozen=True)
class Group:
    folder: Path
    version: int

    @property
    def members(self) -> Path:
        """What a process writes its id to that joins; memory that it has by then is not counted."""
        return self.folder / "cgroup.procs"

    def peak(self) -> int:
        return int(self._file(1).read_text())

    def kills(self) -> int:
        lines = (line.split() for line in self._file(2).read_text().splitlines())
        return int(dict(line for line in lines if len(line) == 2)["oom_kill"])

    def limit(self, size: int) -> None:
        self._file(0).write_text(str(size))

    def _file(self, which: int) -> Path:
        return self.folder / _FILES[self.version][which]


@contextmanager
def limited(size: int) -> Iterator[Group]:
    """A group with that limit of memory; OSError where none can be made."""
    parent, version = _parent()
    group = Group(parent / f"flashpack-{os.getpid()}", version)
    group.folder.mkdir()
    try:
        group.limit(size)
        yield group
    finally:
        while group.members.read_text():  # a process that has ended takes a moment to leave
            time.sleep(0.01)
        group.folder.rmdir()


def _parent() -> tuple[Path, int]:
    """The root of the groups that limit memory, and their version."""
    mounts = [line.split()[1:4] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for at, kind, options in mounts:
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(at), 1
        if kind == "cgroup2" and "memory" in Path(at, "cgroup.controllers").read_text().split():
            Path(at, "cgroup.subtree_control").write_text("+memory")
            return Path(at), 2
    raise FileNotFoundError("no control groups for memory are mounted")


def missing() -> str:
    """Why no group can be made here; empty if one can."""
    try:
        with limited(1 << 30):
            return ""
    except OSError as error:
        return f"no control group with a limit of memory can be made: {error}"
