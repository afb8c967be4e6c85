"""The same loads from stores of other projects, which know nothing of this one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import emulators
import flashpack
import pytest
from faultstore import SECRET
from helpers import assert_same
from patience import within
from remote_model import SAFETENSORS, SHARDS, TORCH_SHARDS, URL, tensors

KEY = "tests"


def files(written: Path) -> Iterator[tuple[str, bytes]]:
    for path in written.rglob("*"):
        if path.is_file():
            yield path.relative_to(written).as_posix(), path.read_bytes()


def ask(method: str, url: str, data: bytes = b"", kind: str = "application/octet-stream") -> None:
    urlopen(Request(url, data, {"Content-Type": kind}, method=method), timeout=30).close()


def settings_of_s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    with emulators.moto() as address:
        yield address


@pytest.fixture
def in_moto(moto: str, _written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("POST", f"{moto}/moto-api/reset")
    ask("PUT", f"{moto}/bucket")
    for name, data in files(_written):
        ask("PUT", f"{moto}/bucket/{quote(name)}", data)
    settings_of_s3(moto, monkeypatch)


@pytest.fixture
def in_rclone(tmp_path: Path, _written: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shutil.copytree(_written, tmp_path / "rclone/bucket", copy_function=os.link)  # it follows no links
    with emulators.rclone(tmp_path / "rclone", KEY, SECRET) as address:
        settings_of_s3(address, monkeypatch)
        yield


@pytest.mark.parametrize("url", [URL, SAFETENSORS, SHARDS, TORCH_SHARDS])
@pytest.mark.usefixtures("in_moto")
def test_loads_from_moto(url: str) -> None:
    assert_same(within(lambda: flashpack.load_file(url)), tensors())


@pytest.mark.parametrize("url", [URL, SAFETENSORS, SHARDS, TORCH_SHARDS])
@pytest.mark.usefixtures("in_rclone")
def test_loads_from_rclone_which_checks_signatures(url: str) -> None:
    assert_same(within(lambda: flashpack.load_file(url)), tensors())


@pytest.mark.usefixtures("in_rclone")
def test_a_wrong_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(PermissionError) as told:
        within(lambda: flashpack.load_file(URL))
    assert "another-secret" not in str(told.value)
