"""Loads from a file system that makes readers wait: the right bytes, the right errors, enough requests.

Nothing here looks at a clock: the file system counts the requests that it gets.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slowfs
import torch
from helpers import MIB, noise
from processes import environment

pytestmark = pytest.mark.skipif(bool(slowfs.missing()), reason=slowfs.missing())

LATENCY_MS = 2
PATIENCE_SECONDS = 20.0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder that is mounted."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def slow(source: Path, tmp_path: Path) -> Iterator[slowfs.Mount]:
    """Where it is slow."""
    with slowfs.mounted(source, tmp_path / "slow", latency_ms=LATENCY_MS) as mount:
        yield mount


# --- The file system itself. ------------------------------------------------------------------------


def test_reads_are_counted(source: Path, slow: slowfs.Mount) -> None:
    data = noise(torch.uint8, (5 * MIB + 7,)).numpy().tobytes()
    (source / "folder").mkdir()
    (source / "folder/file").write_bytes(data)
    assert [path.name for path in slow.folder.iterdir()] == ["folder"]
    file = slow.folder / "folder/file"
    assert file.stat().st_mtime_ns == (source / "folder/file").stat().st_mtime_ns
    assert file.read_bytes() == data
    first = slow.counts()
    assert first.bytes == len(data)
    assert first.requests >= 6
    assert file.read_bytes() == data
    assert slow.counts() == slowfs.Counts(0, 0, 0)  # it lies in the page cache


def test_a_large_direct_read_is_several_requests_at_once(source: Path, tmp_path: Path) -> None:
    data = noise(torch.uint8, (5 * MIB,)).numpy().tobytes()
    (source / "file").write_bytes(data)
    with slowfs.mounted(source, tmp_path / "slow", latency_ms=300) as slow, mmap.mmap(-1, 4 * MIB) as buffer:
        descriptor = os.open(slow.folder / "file", os.O_RDONLY | os.O_DIRECT)
        assert os.preadv(descriptor, [buffer], MIB) == 4 * MIB
        os.close(descriptor)
        assert buffer[:] == data[MIB:]
        assert slow.counts() == slowfs.Counts(4, 4 * MIB, 4)


def test_it_ends_with_its_parent(source: Path, tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys, slowfs
        from pathlib import Path
        with slowfs.mounted(Path(sys.argv[1]), Path(sys.argv[2])):
            print(os.path.ismount(sys.argv[2]))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    folder = tmp_path / "slow"
    done = subprocess.run(
        [sys.executable, "-u", "-c", code, source, folder],
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"True\n")
    end = time.monotonic() + PATIENCE_SECONDS
    while os.path.ismount(folder) and time.monotonic() < end:
        time.sleep(0.01)
    assert [*folder.iterdir()] == []
