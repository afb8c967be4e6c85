"""Saves that fail: on a full disk, by a kill, by an error. What was there before stays."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import flashpack
import pytest
import torch
from flashpack.commands import convert_to_flashpack
from helpers import MIB, listing
from processes import python, succeed
from safetensors.torch import save_file


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones included, with its content."""
    return {name: (folder / name).read_bytes() for name in listing(folder)}


# With 0.4.5 a full disk is SIGBUS, and a killed pack leaves temporary files of 100 MB.

FULL_DISK = """
import errno, os, resource, sys
import flashpack
from flashpack.commands import convert_to_flashpack, revert_from_flashpack

operation, source, destination, limit = sys.argv[1:]
if operation == "pack":
    import torch
    tensors = {"a": torch.ones(1 << 20)}
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
with open(destination, "wb") as file:
    file.write(b"the old file")
try:
    if operation == "pack":
        flashpack.pack_to_file(tensors, destination)
    elif operation == "convert":
        convert_to_flashpack(source + ".safetensors", destination)
    else:
        revert_from_flashpack(source + ".flashpack", destination)
except OSError as error:
    print(errno.errorcode[error.errno], destination in str(error))
folder, name = os.path.split(destination)
assert os.listdir(folder) == [name], os.listdir(folder)
assert open(destination, "rb").read() == b"the old file"
"""
IN_SMALL_DISK = ["unshare", "-m", "sh", "-ec", 'mount -t tmpfs -o size=2m none "$0"; exec "$@"']


@pytest.fixture(params=["small", "limited"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[object], int]:
    """The error that a disk without room gives, the command that makes such a disk, a limit on files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "limited":
        return "EFBIG", [], 2 * MIB
    try:
        subprocess.run([*IN_SMALL_DISK, folder, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system")
    return "ENOSPC", [*IN_SMALL_DISK, folder], 0


DISK_OPERATIONS = {"pack": "out", "convert": "out", "revert": "out.safetensors", "revert to torch": "out.pt"}


@pytest.mark.parametrize("operation", DISK_OPERATIONS)
def test_a_full_disk_is_an_os_error(
    tmp_path: Path, operation: str, disk: tuple[str, list[object], int]
) -> None:
    code, behind, limit = disk
    save_file({"a": torch.ones(MIB)}, tmp_path / "source.safetensors")
    flashpack.save_file({"a": torch.ones(MIB)}, tmp_path / "source.flashpack")
    destination = tmp_path / "disk" / DISK_OPERATIONS[operation]
    done = python("-c", FULL_DISK, operation, tmp_path / "source", destination, limit, behind=behind)
    assert succeed(done).split() == [code, "True"]


# Kills its own process as soon as some bytes, but not all, are on their way to the disk.
KILLED = """
import os, signal, sys, threading
import flashpack.ops
import torch

progress = torch.zeros(3, dtype=torch.int64)
seen = memoryview(progress.numpy())

def kill():
    while not seen[0]:
        pass
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
torch.ops.flashpack.pack(sys.argv[1], ["a"], [torch.ones(64 << 20)], progress=progress)
"""


def test_a_killed_pack_leaves_nothing(path: Path) -> None:
    flashpack.save_file({"a": torch.zeros(5)}, path)
    old = path.read_bytes()
    assert python("-c", KILLED, path).returncode == -signal.SIGKILL
    assert listing(path.parent) == {path.name}
    assert path.read_bytes() == old


FAILURES: dict[str, Callable[[Path], object]] = {
    "nothing to pack": lambda path: flashpack.pack_to_file({}, path),
    "a sparse tensor": lambda path: flashpack.pack_to_file({"a": torch.ones(3).to_sparse()}, path),
    "a meta tensor": lambda path: flashpack.pack_to_file({"a": torch.ones(3, device="meta")}, path),
    "extra state": lambda path: flashpack.pack_to_file({"a": torch.ones(3), "b._extra_state": 7}, path),
    "a bad target": lambda path: flashpack.pack_to_file({"a": torch.ones(3)}, path, torch.int8),
    "a bad source": lambda path: convert_to_flashpack(__file__, path),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("old", [None, b"the old file"], ids=["new", "replacing"])
def test_a_failed_pack_leaves_everything_as_it_was(path: Path, failure: str, old: bytes | None) -> None:
    if old is not None:
        path.write_bytes(old)
    before = snapshot(path.parent)
    with pytest.raises(ValueError, match=r"\S"):
        FAILURES[failure](path)
    assert snapshot(path.parent) == before
