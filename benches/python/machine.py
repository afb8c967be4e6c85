"""The machine that a result was measured on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe(folder: Path) -> dict[str, str]:
    """CPU, cores, memory, kernel, and the file system and disk that hold `folder`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "disk": _disk(folder),
        "huge pages": _selected(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _disk(folder: Path) -> str:
    """Such as `ext4 on /dev/nvme0n1 (not rotational)`."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    device, _, kind, *_ = max(inside, key=lambda mount: len(mount[1]))
    block = Path("/sys/class/block", Path(device).name).resolve()
    for owner in (block, block.parent):  # a partition's properties are its disk's
        rotational = owner / "queue/rotational"
        if rotational.exists():
            return f"{kind} on {device} ({'' if rotational.read_text().strip() == '1' else 'not '}rotational)"
    return f"{kind} on {device}"


def _selected(path: Path) -> str:
    text = path.read_text() if path.exists() else "[unknown]"
    return text.partition("[")[2].partition("]")[0]
