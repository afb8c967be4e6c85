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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import flashpack
import pytest
import safetensors.torch
import slowfs
import torch
from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file
from helpers import MIB, SAFETENSORS_DTYPES, assert_same, dtype_id, noise, place_of
from processes import environment, python, succeed
from torch import Tensor, nn

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


# --- The right bytes. -------------------------------------------------------------------------------


def tensors() -> dict[str, Tensor]:
    """Every type that safetensors have, too, and enough to be read in several pieces."""
    kinds = enumerate(SAFETENSORS_DTYPES)
    small = {f"of_{dtype_id(dtype)}": noise(dtype, (33, 70), number) for number, dtype in kinds}
    return {
        "first": noise(torch.bfloat16, (1900, 1500), 90),
        **small,
        "last": noise(torch.float32, (1511, 999), 91),
    }


def by_handle(path: Path) -> dict[str, Tensor]:
    with flashpack.open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def in_place(path: Path) -> dict[str, Tensor]:
    model = nn.Module()
    for name, tensor in tensors().items():
        model.register_buffer(name, torch.zeros_like(tensor))
    flashpack.assign_from_file(model, path, in_place=True)
    return dict(model.state_dict())


LOADS: dict[str, Callable[[Path], Mapping[str, Tensor]]] = {
    "mapped": flashpack.load_file,
    "mapped, not read ahead": lambda path: flashpack.load_file(path, eager=False),
    "eager": lambda path: flashpack.load_file(path, eager=True),
    "eager, not verified": lambda path: flashpack.load_file(path, eager=True, verify=False),
    "names": lambda path: flashpack.load_file(path, names=list(tensors())[::-1], eager=True),
    "open": by_handle,
    "blocks": lambda path: dict(iterate_from_flash_tensor(*read_flashpack_file(path, eager=True))),
    "in place": in_place,
}
EVERY_LOAD = pytest.mark.parametrize("load", LOADS)


def written(folder: Path, form: str) -> tuple[str, dict[str, Tensor]]:
    """What is loaded of `folder`, and what it must give."""
    want = tensors()
    if form == "safetensors":
        safetensors.torch.save_file(want, folder / "model.safetensors")
        return "model.safetensors", want
    largest = {"max_shard_size": 3 * MIB} if form == "shards" else {}
    flashpack.save_file(want, folder / "model.flashpack", **largest)
    return ("" if form == "shards" else "model.flashpack"), want


@EVERY_LOAD
@pytest.mark.parametrize("form", ["flashpack", "shards", "safetensors"])
def test_the_bytes_are_right(load: str, form: str, source: Path, slow: slowfs.Mount) -> None:
    name, want = written(source, form)
    got = LOADS[load](slow.folder / name)
    assert_same(got, want)
    payload = sum(tensor.nbytes for tensor in want.values())
    assert slow.counts().bytes >= payload * 0.99  # came from there


def test_parts_of_tensors(source: Path, slow: slowfs.Mount) -> None:
    want = tensors()
    flashpack.save_file(want, source / "model.flashpack")
    parts = flashpack.load_file(
        slow.folder / "model.flashpack", slices={"last": (0, 700, 900)}, names=["last"]
    )
    assert_same(parts, {"last": want["last"][700:900]})
    assert slow.counts().bytes < 3 * MIB


# --- The right errors. ------------------------------------------------------------------------------

FAILING = f"""if True:
    import errno, sys
    import flashpack, torch
    from flashpack.deserialization import read_flashpack_file
    path = sys.argv[1]
    model = torch.nn.Module()
    for number in range(8):
        model.register_buffer(f"t{{number}}", torch.ones({4 * MIB}, dtype=torch.uint8))
    for load in (
        lambda: flashpack.load_file(path, eager=True),
        lambda: flashpack.load_file(path, eager=True, verify=False),
        lambda: flashpack.load_file(path, eager=False, verify=True),
        lambda: flashpack.load_file(path, names=["t3", "t4"], eager=True),
        lambda: flashpack.assign_from_file(model, path, in_place=True),
        lambda: read_flashpack_file(path, eager=True),
        lambda: flashpack.verify_file(path),
    ):
        try:
            load()
        except OSError as error:
            assert error.errno == errno.EIO, error
            assert path in str(error), error
        else:
            raise AssertionError("no error")
        assert len(flashpack.load_file(path, names=["t1", "t7"], eager=True)) == 2
        print("told")
"""


@pytest.fixture
def broken(source: Path, tmp_path: Path) -> Iterator[Path]:
    """A file of `t0` to `t7`; the middle of `t4` cannot be read."""
    flashpack.save_file(eight(), source / "model.flashpack")
    start, size = place_of(source / "model.flashpack", "t4")
    with slowfs.mounted(source, tmp_path / "slow", latency_ms=2, fail_at=start + size // 2) as mount:
        yield mount.folder / "model.flashpack"


def eight() -> dict[str, Tensor]:
    return {f"t{number}": noise(torch.uint8, (4 * MIB,), number) for number in range(8)}


def test_a_read_that_fails_is_an_error_of_that_file(broken: Path) -> None:
    """In a process of its own, which must not hang."""
    assert succeed(python("-c", FAILING, broken, timeout=120)) == 7 * "told\n"


def test_what_cannot_be_read_ahead_harms_nothing_else(broken: Path) -> None:
    want = eight()
    got = flashpack.load_file(broken)
    del got["t4"], want["t4"]
    assert_same(got, want)
