"""A process that the kernel tells of other NUMA nodes than this machine has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from processes import python

NODES, DEVICES = "/sys/devices/system/node", "/sys/bus/pci/devices"
MOUNT = f'mount --bind "$0/node" {NODES} && mount --bind "$0/pci" {DEVICES} && exec "$@"'


def halves() -> tuple[set[int], set[int]]:
    """The processors that this process may use, in two halves."""
    processors = sorted(os.sched_getaffinity(0))
    middle = len(processors) // 2
    if not middle:
        pytest.skip("there is one processor")
    return set(processors[:middle]), set(processors[middle:])


def with_nodes(
    folder: Path, nodes: Mapping[int, set[int]], devices: Mapping[str, int] | None = None
) -> list[object]:
    """What to run a command behind so that it sees nodes with these processors, and devices on them."""
    (folder / "node").mkdir()
    (folder / "node/online").write_text(listed(nodes))
    for node, processors in nodes.items():
        (folder / f"node/node{node}").mkdir()
        (folder / f"node/node{node}/cpulist").write_text(listed(processors))
    (folder / "pci").mkdir()
    for device, node in (devices or {}).items():
        (folder / "pci" / device).mkdir()
        (folder / "pci" / device / "numa_node").write_text(f"{node}\n")
    behind = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", MOUNT, folder]
    if not shutil.which("unshare") or python("-c", "", behind=behind).returncode:
        pytest.skip("the system lets nobody but root mount over /sys")
    return behind


def listed(numbers: Mapping[int, object] | set[int]) -> str:
    return ",".join(map(str, sorted(numbers))) + "\n"
