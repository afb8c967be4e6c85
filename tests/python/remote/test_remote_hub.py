"""hf:// against the stand-in for a model hub: one commit, a token for the hub only, its client's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import flashpack
import pytest
from faultstore import Store
from helpers import assert_same
from hub_server import connect, serving
from hub_store import READER_TOKEN, STRANGER_TOKEN, Hub
from patience import within
from remote_model import tensors

NAME = "model.flashpack"
URL = f"hf://tiny/model/{NAME}"


@pytest.fixture
def hub(tmp_path: Path, _written: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With the model in a repository."""
    with serving() as made:
        made.add("tiny/model", {NAME: (_written / "folder" / NAME).read_bytes()})
        for name, value in made.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        yield made


def test_a_file_of_a_repository_is_loaded_without_a_copy(hub: Hub, tmp_path: Path) -> None:
    assert_same(within(lambda: flashpack.load_file(URL)), tensors())
    assert not (tmp_path / "home").exists()
    asked = [path for _, path in hub.requests if "/resolve/" in path]
    assert len(asked) <= 2  # all else goes to where the file lies
    assert sum(1 for path in hub.downloads() if "/large/" in path) >= 3


def test_revisions_are_commits(hub: Hub, _written: Path) -> None:
    old = hub.repositories["tiny/model"].head.sha
    changed = (_written / "folder/model.flashpack.changed").read_bytes()
    hub.add("tiny/model", {NAME: changed}, revision="other")
    others = {name: tensor.flip(0) for name, tensor in tensors().items()}
    for revision, want in (("main", tensors()), ("other", others), (old, tensors())):
        url = f"hf://tiny/model@{revision}/{NAME}"
        assert_same(within(lambda url=url: flashpack.load_file(url)), want)
    with pytest.raises(FileNotFoundError, match=r"RevisionNotFound|Invalid rev"):
        within(lambda: flashpack.load_file(f"hf://tiny/model@none/{NAME}"))
    with pytest.raises(FileNotFoundError):
        within(lambda: flashpack.load_file("hf://tiny/model/none.flashpack"))
    with pytest.raises(OSError, match="tiny/none"):
        within(lambda: flashpack.load_file(f"hf://tiny/none/{NAME}"))


def test_a_push_between_two_reads_changes_nothing(hub: Hub, _written: Path) -> None:
    with flashpack.open(URL) as file:
        hub.add("tiny/model", {NAME: (_written / "folder/model.flashpack.changed").read_bytes()})
        for name in tensors():
            assert_same({name: within(lambda name=name: file.get_tensor(name))}, {name: tensors()[name]})


def test_private_and_gated_repositories_need_a_token(
    hub: Hub, _written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {NAME: (_written / "folder" / NAME).read_bytes()}
    hub.add("tiny/private", data, private=True)
    hub.add("tiny/gated", data, gated=True)
    for repository in ("private", "gated"):
        url = f"hf://tiny/{repository}/{NAME}"
        for token in ("", STRANGER_TOKEN):
            monkeypatch.setenv("HF_TOKEN", token)
            with pytest.raises(OSError, match=f"tiny/{repository}") as told:
                within(lambda url=url: flashpack.load_file(url))
            assert token == "" or token not in str(told.value)
        monkeypatch.setenv("HF_TOKEN", READER_TOKEN)
        assert_same(within(lambda url=url: flashpack.load_file(url)), tensors())


def test_a_file_in_the_clients_cache_is_read_from_there(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import hf_hub_download

    connect(hub, monkeypatch, tmp_path / "home/hub")
    hf_hub_download("tiny/model", NAME)
    hub.requests.clear()
    assert_same(within(lambda: flashpack.load_file(URL)), tensors())
    large = [path for method, path in hub.requests if "/large/" in path and method == "GET"]
    assert len(large) <= 1  # the one that has told the commit
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    assert_same(within(lambda: flashpack.load_file(URL)), tensors())
    assert hub.requests == []


REPOSITORY = "tiny/far/resolve"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_signed_address_is_kept_and_renewed(
    store: Store, _written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hub that is the store of faults: its redirects expire."""
    for revision in ("main", COMMIT):
        (store.folder / REPOSITORY).mkdir(parents=True, exist_ok=True)
        (store.folder / REPOSITORY / revision).symlink_to(_written / "folder")
    monkeypatch.setenv("HF_ENDPOINT", store.endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", "abc")
    for expires in (0, 2, 3, 4):
        redirect = {"kind": "redirect", "times": 0, "expires": expires}
        store.plan(redirect, token="abc", headers={"X-Repo-Commit": COMMIT})
        assert_same(within(lambda: flashpack.load_file(f"hf://tiny/far/{NAME}")), tensors())
        requests = store.take()
        signed = [each for each in requests if "/.signed/" in each.target]
        assert {each.authorization for each in signed} == {""}  # the token is the hub's
        asked = [each for each in requests if each not in signed]
        if expires:
            assert 403 in {each.status for each in signed}
        else:
            assert len(asked) <= 2


def test_what_the_hub_gives_out_by_itself_is_of_one_commit(
    store: Store, _written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for revision in ("main", COMMIT):
        (store.folder / REPOSITORY).mkdir(parents=True, exist_ok=True)
        (store.folder / REPOSITORY / revision).symlink_to(_written / "folder")
    monkeypatch.setenv("HF_ENDPOINT", store.endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    store.plan(headers={"X-Repo-Commit": COMMIT})
    assert_same(within(lambda: flashpack.load_file(f"hf://tiny/far/{NAME}")), tensors())
    first, *others = store.take()
    assert "/main/" in first.target
    assert others
    assert all(f"/{COMMIT}/" in each.target for each in others)
