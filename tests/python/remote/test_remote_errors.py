"""One sentence for what is wrong: the URL, what the server said, what to do."""

from __future__ import annotations

import errno
import socket

import flashpack
import pytest
from faultstore import Store
from patience import within
from remote_model import URL


def failure(url: str) -> OSError:
    with pytest.raises(OSError) as told:
        within(lambda: flashpack.load_file(url))
    assert url in str(told.value)
    assert "\n" not in str(told.value)
    return told.value


def test_an_object_that_is_not_there(model: Store) -> None:
    for url in ("s3://bucket/none.flashpack", model.url("bucket/none.flashpack")):
        error = failure(url)
        assert isinstance(error, FileNotFoundError)
        assert "NoSuchKey" in str(error)


def test_no_credentials(model: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    model.plan(signed=True)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    error = failure(URL)
    assert isinstance(error, PermissionError)
    assert "no credentials were found" in str(error)
    assert "AWS_ACCESS_KEY_ID" in str(error)


def test_a_wrong_endpoint(model: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        error = failure(URL)
    assert "cannot be reached" in str(error)
    assert "endpoint" in str(error)
    assert model.take() == []


def test_a_host_without_an_address() -> None:
    error = failure("https://no-such-host.invalid/model.flashpack")
    assert "no address" in str(error) or "cannot be reached" in str(error)


def test_what_is_no_model(model: Store) -> None:
    url = model.url("bucket/shards/model.flashpack.index.json")
    with pytest.raises((OSError, ValueError, KeyError)):
        within(lambda: flashpack.load_file(model.url("bucket")))
    assert len(within(lambda: flashpack.load_file(url))) == 4


def test_errors_have_their_numbers(model: Store) -> None:
    model.plan({"kind": "expire", "times": 0})
    assert failure(URL).errno == errno.EACCES
    model.plan({"kind": "status", "status": 400, "times": 0})
    assert failure(URL).errno == errno.EIO
