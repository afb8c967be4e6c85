"""The cache on this machine: what it saves, many processes with one, and processes that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import flashpack
import pytest
from faultstore import Store, sent
from helpers import assert_same, flip_byte
from patience import within
from processes import environment, python, succeed
from remote_model import SAFETENSORS, SHARDS, TORCH_SHARDS, URL, tensors

TIMEOUT_SECONDS = 120
SMALL = 1 << 20  # what a load of a cached object still fetches, at most
LOAD = """if True:
    import sys
    from flashpack.numpy import load_file  # starts faster than torch
    got, want = map(load_file, sys.argv[1:])
    assert all((got[name] == want[name]).all() for name in want), "other bytes"
    print(len(got))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(store: Store, url: str) -> int:
    """The bytes that a fresh process fetches for the right tensors."""
    store.take()
    local = store.folder / "bucket/folder/model.flashpack"
    assert succeed(python("-c", LOAD, url, local, timeout=TIMEOUT_SECONDS)) == "4\n"
    return sent(store.take())


@pytest.mark.parametrize("url", [URL, SAFETENSORS, SHARDS, TORCH_SHARDS])
@pytest.mark.usefixtures("cache")
def test_the_next_process_reads_from_the_cache(model: Store, url: str) -> None:
    assert load(model, url) > 20 * SMALL
    assert load(model, url) <= SMALL


def test_a_changed_object_is_not_the_cached_one(model: Store, cache: Path) -> None:
    load(model, URL)
    model.plan({"kind": "change", "times": 0})
    got = within(lambda: flashpack.load_file(URL))
    assert_same(got, {name: tensor.flip(0) for name, tensor in tensors().items()})
    model.plan()
    assert load(model, URL) <= SMALL
    assert cache.exists()


def test_parts_that_are_cached_are_not_fetched_again(model: Store, cache: Path) -> None:
    within(lambda: flashpack.load_file(URL, names=["t0", "t1"]))
    half = sent(model.take())
    assert load(model, URL) <= sum(tensor.nbytes for tensor in tensors().values()) - half + 6 * SMALL
    assert load(model, URL) <= SMALL
    assert cache.exists()


def test_a_damaged_cache_is_no_error(model: Store, cache: Path) -> None:
    load(model, URL)
    for path in cache.rglob("*"):
        if path.is_file() and path.stat().st_size > 1 << 20:
            flip_byte(path, 12_345_678)
    assert load(model, URL) > 0


def test_a_cache_that_cannot_be_written_is_no_error(
    model: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLASHPACK_CACHE", str(tmp_path / "file/cache"))
    assert load(model, URL) > 0


@pytest.mark.usefixtures("cache")
def test_eight_processes_share_a_cache(model: Store) -> None:
    local = model.folder / "bucket/folder/model.flashpack"
    model.plan(latency_ms=20)
    command = [sys.executable, "-c", LOAD, URL, local]
    running = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    for process in running:
        out, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        assert (process.returncode, out) == (0, "4\n")
    assert load(model, URL) <= SMALL


def test_processes_that_are_killed_leave_nothing_torn(model: Store, cache: Path) -> None:
    local = model.folder / "bucket/folder/model.flashpack"
    for requests in (1, 2, 3, 4):
        model.plan(connection_mb_per_s=30)
        with subprocess.Popen([sys.executable, "-c", LOAD, URL, local], env=environment()) as process:
            wait_for(model, requests)
            process.send_signal(signal.SIGKILL)
        model.plan()
        assert_same(within(lambda: flashpack.load_file(URL)), tensors())
        for path in cache.rglob("*"):
            if path.is_file():
                path.unlink()
    load(model, URL)
    assert load(model, URL) <= SMALL


def wait_for(store: Store, requests: int) -> None:
    seen, end = 0, time.monotonic() + TIMEOUT_SECONDS
    while seen < requests:
        assert time.monotonic() < end
        seen += len(store.take("model"))
