"""The same loads from stores of other projects, which know nothing of this one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Iterator
from email.utils import formatdate
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import emulators
import flashpack
import pytest
from faultstore import SECRET, Store
from helpers import assert_same
from patience import within
from remote_model import FOLDER, SAFETENSORS, SHARDS, TORCH_SHARDS, URL, tensors

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


@pytest.mark.usefixtures("in_moto")
def test_saves_to_moto() -> None:
    save(f"{FOLDER}/new.flashpack")


@pytest.mark.usefixtures("in_rclone")
def test_saves_to_rclone() -> None:
    save(f"{FOLDER}/new.flashpack")


def save(url: str) -> None:
    within(lambda: flashpack.save_file(tensors(), url))
    assert_same(within(lambda: flashpack.load_file(url)), tensors())


@pytest.fixture
def in_gcs(_written: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with emulators.gcs() as address:
        made = json.dumps({"name": "bucket"}).encode()
        ask("POST", f"{address}/storage/v1/b?project=tests", made, "application/json")
        for name, data in files(_written):
            target = f"{address}/upload/storage/v1/b/bucket/o?uploadType=media&name={quote(name, safe='')}"
            ask("POST", target, data)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield


@pytest.mark.parametrize("url", [URL, SAFETENSORS, SHARDS, TORCH_SHARDS])
@pytest.mark.usefixtures("in_gcs")
def test_loads_from_google_clouds_emulator(url: str) -> None:
    assert_same(within(lambda: flashpack.load_file(url.replace("s3:", "gs:"))), tensors())


@pytest.mark.usefixtures("in_gcs")
def test_saves_to_google_clouds_emulator() -> None:
    save("gs://bucket/folder/new.flashpack")


@pytest.mark.parametrize(
    "folder", [f"{FOLDER}/", "s3://bucket/shards/", "s3://bucket/hub/", "s3://bucket/shards"]
)
@pytest.mark.usefixtures("in_moto")
def test_folders_of_moto(folder: str) -> None:
    assert_same(within(lambda: flashpack.load_file(folder)), tensors())


@pytest.mark.usefixtures("in_gcs")
def test_folders_of_google_clouds_emulator() -> None:
    for folder in ("shards", "hub"):
        assert_same(within(lambda folder=folder: flashpack.load_file(f"gs://bucket/{folder}/")), tensors())


# --- Azure. -----------------------------------------------------------------------------------------

ACCOUNT = "devstoreaccount1"  # azurite's own, whose key everybody knows
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-08-06"


def settings_of_azure(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{endpoint}/{ACCOUNT}")


def make_container(endpoint: str, name: str) -> None:
    """Azure takes no anonymous request for one: signs it with the account's key."""
    date = formatdate(usegmt=True)
    resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signed = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{VERSION}\n{resource}"
    code = hmac.new(base64.b64decode(ACCOUNT_KEY), signed.encode(), hashlib.sha256).digest()
    headers = {
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(code).decode()}",
        "x-ms-date": date,
        "x-ms-version": VERSION,
    }
    connection = HTTPConnection(endpoint.removeprefix("http://"))
    connection.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=headers)
    assert connection.getresponse().status == 201
    connection.close()


def use_azure() -> None:
    """Saves, whole and in shards, and loads, of objects and of folders."""
    save("az://bucket/folder/new.flashpack")
    within(
        lambda: flashpack.save_file(tensors(), "az://bucket/parts/model.flashpack", max_shard_size=15 << 20)
    )
    for url in ("az://bucket/parts/model.flashpack", "az://bucket/parts/"):
        assert_same(within(lambda url=url: flashpack.load_file(url)), tensors())
    with pytest.raises(FileNotFoundError):
        within(lambda: flashpack.load_file("az://bucket/none.flashpack"))


def test_azures_paths(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_of_azure(store.endpoint, monkeypatch)
    use_azure()
    assert {request.authorization for request in store.take()} == {"SharedKey"}


@pytest.mark.slow  # azurite is 360 MB of packages
def test_azurite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with emulators.azurite(tmp_path) as address:
        make_container(address, "bucket")
        settings_of_azure(address, monkeypatch)
        use_azure()
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"another").decode())
        with pytest.raises(PermissionError):
            within(lambda: flashpack.load_file("az://bucket/folder/new.flashpack"))
