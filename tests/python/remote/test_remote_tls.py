"""TLS with a private authority, and proxies: in processes of their own, as connections are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import emulators
import faultstore
import pytest
from faultstore import SECRET, Store
from processes import environment, python, succeed

LOAD = """if True:
    import sys
    from flashpack.numpy import load_file  # starts faster than torch
    got, want = map(load_file, sys.argv[1:])
    assert all((got[name] == want[name]).all() for name in want), "other bytes"
    print(len(got))
"""
FAIL = """if True:
    import sys
    from flashpack.numpy import load_file
    try:
        load_file(sys.argv[1])
    except OSError as error:
        print(error)
"""
TIMEOUT_SECONDS = 60


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The authority's certificate, and the server's with its key."""
    return emulators.certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(tmp_path: Path, made: tuple[Path, Path], _written: Path) -> Iterator[Store]:
    """A store with the model that also speaks TLS."""
    folder = tmp_path / "secure"
    folder.mkdir()
    (folder / "bucket").symlink_to(_written)
    with faultstore.serving(folder, made[1]) as store:
        yield store


def load(store: Store, url: str, **env: str) -> None:
    local = store.folder / "bucket/folder/model.flashpack"
    done = python("-c", LOAD, url, local, env=environment(**env), timeout=TIMEOUT_SECONDS)
    assert succeed(done) == "4\n"


def failure(url: str, **env: str) -> str:
    return succeed(python("-c", FAIL, url, env=environment(**env), timeout=TIMEOUT_SECONDS)).strip()


KEY = "bucket/folder/model.flashpack"


def test_a_private_authority_is_trusted_if_it_is_named(secure: Store, made: tuple[Path, Path]) -> None:
    load(secure, secure.url(KEY, "https"), SSL_CERT_FILE=str(made[0]))
    endpoint = secure.endpoint.replace("http:", "https:")
    load(
        secure,
        f"s3://{KEY}",
        **{**secure.environment(), "AWS_ENDPOINT_URL": endpoint},
        SSL_CERT_FILE=str(made[0]),
    )
    assert len(secure.take()) >= 6


def test_what_is_not_trusted_is_one_clear_error(secure: Store, made: tuple[Path, Path]) -> None:
    url = secure.url(KEY, "https")
    for env in ({}, {"SSL_CERT_FILE": str(made[0].parent / "none.pem")}):
        message = failure(f"{url}?key={SECRET}", **env)
        assert message.startswith(f"{url}: ") or f"{url}'" in message, message
        assert "SSL_CERT_FILE" in message
        assert SECRET not in message
        assert "\n" not in message
    assert secure.take() == []


def test_tls_to_a_server_without_it_is_one_clear_error(model: Store) -> None:
    url = model.url(KEY, "https")
    message = failure(url)
    assert url in message
    assert "secure connection" in message


def test_proxies_are_used_for_both_schemes(secure: Store, made: tuple[Path, Path]) -> None:
    proxy = {"http_proxy": secure.endpoint, "https_proxy": secure.endpoint}
    load(secure, f"http://store.test/{KEY}", **proxy)
    seen = secure.take()
    assert seen
    assert "store.test" in seen[0].target
    load(secure, f"https://store.test/{KEY}", **proxy, SSL_CERT_FILE=str(made[0]))
    seen = secure.take()
    assert [seen[0].method, seen[0].target] == ["CONNECT", "store.test:443"]


def test_no_proxy_is_heeded(secure: Store) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    load(secure, secure.url(KEY), **proxy)
    assert all(request.target == f"/{KEY}" for request in secure.take())


def test_a_proxy_that_does_not_answer_is_one_clear_error() -> None:
    message = failure(f"http://store.test/{KEY}", http_proxy="http://user:secret-word@127.0.0.1:9")
    assert f"http://store.test/{KEY}" in message
    assert "proxy" in message
    assert "secret-word" not in message


def test_what_is_no_proxy_is_not_gone_around(model: Store) -> None:
    message = failure(model.url(KEY), http_proxy="ftp://user:secret-word@127.0.0.1:9")
    assert "http_proxy" in message
    assert "no URL of a proxy" in message
    assert "secret-word" not in message
    assert model.take() == []
