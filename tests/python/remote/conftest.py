"""Stores on loopback, and an environment in which nothing leads elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import faultstore
import pytest
import remote_model
from faultstore import Store

sys.path.append(str(Path(__file__).parents[1] / "integrations"))  # what builds tiny pipelines

_ELSEWHERE = (
    *("aws_", "azure_", "google_", "hf_", "ssl_cert_"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)


@pytest.fixture(autouse=True)
def _nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of this machine take part, and no service of a cloud is asked for credentials."""
    for name in os.environ:
        if name.lower().startswith(_ELSEWHERE):
            monkeypatch.delenv(name)
    for name, value in faultstore.NOWHERE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The store of tests/faultstore."""
    folder = tmp_path / "store"
    folder.mkdir()
    with faultstore.serving(folder) as made:
        yield made


@pytest.fixture
def s3(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same, as the S3 of this process."""
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    return store


@pytest.fixture(scope="session")
def _written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "bucket"
    remote_model.write(folder)
    return folder


@pytest.fixture
def model(s3: Store, _written: Path) -> Store:
    """The same with the model of `remote_model`, which tests leave as it is."""
    (s3.folder / "bucket").symlink_to(_written)
    return s3
