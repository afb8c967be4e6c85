"""Saves to stores: in parts, whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import flashpack
import pytest
import safetensors.torch
from faultstore import SECRET, Store
from helpers import MIB, assert_same
from patience import within
from processes import environment, python, succeed
from remote_model import load, tensors

URL = "s3://uploads/folder/model.flashpack"
PATIENCE_SECONDS = 60.0


@pytest.fixture
def bucket(s3: Store) -> Path:
    folder = s3.folder / "uploads"
    folder.mkdir()
    return folder


def save(url: str = URL, **options: int) -> None:
    within(lambda: flashpack.save_file(tensors(), url, **options))


def left(store: Store) -> list[Path]:
    """Parts of uploads that were neither finished nor given up."""
    return [*(store.folder / ".uploads").glob("*")]


def test_a_saved_object_is_the_file(s3: Store, bucket: Path, tmp_path: Path) -> None:
    save()
    flashpack.save_file(tensors(), tmp_path / "model.flashpack")
    assert (bucket / "folder/model.flashpack").read_bytes() == (tmp_path / "model.flashpack").read_bytes()
    assert sum(1 for request in s3.take() if "partNumber" in request.target) >= 2
    assert left(s3) == []
    load(s3, URL)


def test_shards_and_their_index(s3: Store, bucket: Path) -> None:
    save("s3://uploads/shards/model.flashpack", max_shard_size=15 * MIB)
    names = sorted(path.name for path in (bucket / "shards").iterdir())
    assert len(names) == 3
    index = [number for number, request in enumerate(s3.take()) if "index" in request.target]
    assert index
    load(s3, "s3://uploads/shards")


def test_conversions_to_and_from_stores(s3: Store, bucket: Path, tmp_path: Path) -> None:
    safetensors.torch.save_file(tensors(), tmp_path / "model.safetensors")
    command = ["-m", "flashpack", "convert"]
    succeed(python(*command, tmp_path / "model.safetensors", URL))
    load(s3, URL)
    safetensors.torch.save_file(tensors(), bucket / "source.safetensors")
    succeed(python(*command, "s3://uploads/source.safetensors", "s3://uploads/second.flashpack"))
    load(s3, "s3://uploads/second.flashpack")
    succeed(python(*command, "s3://uploads/source.safetensors", tmp_path / "third.flashpack"))
    assert_same(flashpack.load_file(tmp_path / "third.flashpack"), tensors())


def test_a_fault_at_each_request_is_mended(s3: Store, bucket: Path) -> None:
    save()
    count = len(s3.take())
    want = (bucket / "folder/model.flashpack").read_bytes()
    for kind in ({"kind": "reset"}, {"kind": "status", "status": 503, "retry_after": 0}):
        for number in range(1, count + 1):
            (bucket / "folder/model.flashpack").unlink()
            s3.plan({**kind, "first": number})
            save()
            assert (bucket / "folder/model.flashpack").read_bytes() == want
            assert left(s3) == [], number


def test_a_refusal_at_each_request_leaves_the_old_object(s3: Store, bucket: Path) -> None:
    save()
    count = len(s3.take())
    target = bucket / "folder/model.flashpack"
    target.write_bytes(b"old")
    for number in range(1, count + 1):
        s3.plan({"kind": "expire", "first": number})
        with pytest.raises(OSError, match="refuses access") as told:
            save()
        assert URL in str(told.value)
        assert SECRET not in str(told.value)
        assert target.read_bytes() == b"old"
        assert left(s3) == [], number


KILLED = """if True:
    import sys
    import numpy
    from flashpack.numpy import save_file
    save_file({str(n): numpy.full(8 << 20, n, numpy.uint8) for n in range(40)}, sys.argv[1])
"""


def test_a_save_that_is_killed_leaves_the_old_object(s3: Store, bucket: Path) -> None:
    target = bucket / "folder/model.flashpack"
    target.parent.mkdir()
    target.write_bytes(b"old")
    s3.plan(connection_mb_per_s=5)  # seconds for the parts that follow the first ones
    for parts in (1, 3):
        with subprocess.Popen([sys.executable, "-c", KILLED, URL], env=environment()) as process:
            wait_for_parts(s3, parts)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert target.read_bytes() == b"old"
    s3.plan()
    succeed(python("-c", KILLED, URL))
    assert len(flashpack.load_file(URL)) == 40


def wait_for_parts(store: Store, parts: int) -> None:
    seen, end = 0, time.monotonic() + PATIENCE_SECONDS
    while seen < parts:
        assert time.monotonic() < end
        seen += sum(1 for request in store.take("partNumber") if request.status == 200)
        time.sleep(0.005)


def test_an_unknown_scheme_is_an_error_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: flashpack.save_file(tensors(), "ftp://host/model.flashpack"),
        lambda: flashpack.load_file("ftp://host/model.flashpack"),
    ):
        with pytest.raises((ValueError, OSError), match="ftp"):
            call()
    assert [*tmp_path.iterdir()] == []


def test_what_cannot_be_written_says_so(store: Store) -> None:
    url = store.url("uploads/model.flashpack")
    with pytest.raises((OSError, ValueError)) as told:
        save(url)
    assert url in str(told.value)


def test_a_folder_of_a_store_is_no_destination_of_a_save(s3: Store) -> None:
    with pytest.raises(ValueError, match=r"s3://uploads/folder/: cannot write: it names a folder"):
        save("s3://uploads/folder/")
    assert s3.take("folder") == []
