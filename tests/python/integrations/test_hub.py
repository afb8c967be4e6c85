"""Model hubs: the real huggingface_hub client against a stand-in server on loopback."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flashpack._hub.client import HubOptions, PushOptions, fetch, is_repo_id, push
from hub_server import connect, serving
from hub_store import OWNER_TOKEN, READER_TOKEN, STRANGER_TOKEN, Hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

FILES = {
    "config.json": b'{"a": 1}',
    "model.flashpack": bytes(range(256)) * 40,
    "unet/config.json": b'{"b": 2}',
    "unet/model.flashpack": b"small",
    "README.md": b"# a model",
}
NAMES = {"config.json", "model.flashpack"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as server:
        connect(server, monkeypatch, tmp_path / "cache")
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def only(names: set[str]) -> dict[str, bytes]:
    return {name: FILES[name] for name in names}


# Fetching.


def test_a_local_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(tmp_path, HubOptions(), ["*"]) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert fetch("owner/name", HubOptions(), ["*"]) == Path("owner/name")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=re.escape(str(tmp_path / "a"))):
        fetch(tmp_path / "a", HubOptions(), ["*"])


@pytest.mark.parametrize(
    "missing", ["./absent", "/absent/folder", "../absent", "a/b/c", "~/x", "a/../b", "é/x"]
)
def test_what_can_only_be_a_path(hub: Hub, missing: str) -> None:
    assert not is_repo_id(missing)
    with pytest.raises(FileNotFoundError, match="Not a folder or a valid repository id") as caught:
        fetch(missing, HubOptions(), ["*"])
    assert caught.value.filename == missing
    assert hub.requests == []


@pytest.mark.parametrize("name", ["tiny/a.", "tiny/a.git", f"tiny/{'n' * 97}"])
def test_other_ids_are_judged_by_the_client(hub: Hub, name: str) -> None:
    with pytest.raises(HFValidationError, match=re.escape(name)):
        fetch(name, HubOptions(), ["*"])
    assert hub.requests == []


def test_fetch_takes_only_what_the_patterns_say(hub: Hub) -> None:
    hub.add("tiny/a", FILES)
    assert files_of(fetch("tiny/a", HubOptions(), sorted(NAMES))) == only(NAMES)
    assert hub.asked() == NAMES
    unet = {"unet/config.json", "unet/model.flashpack"}
    assert files_of(fetch("tiny/a", HubOptions(), ["unet/*"])) == only(NAMES | unet)


def test_an_id_without_an_owner(hub: Hub) -> None:
    hub.add("gpt2", FILES)
    assert files_of(fetch("gpt2", HubOptions(), ["*"])) == FILES


def test_fetch_from_a_branch_and_a_commit(hub: Hub) -> None:
    first = hub.add("tiny/a", FILES).head.sha
    hub.add("tiny/a", {"config.json": b"new"}, revision="v2")
    for revision, expected in ((None, FILES["config.json"]), ("v2", b"new"), (first, FILES["config.json"])):
        folder = fetch("tiny/a", HubOptions(revision=revision), ["config.json"])
        assert (folder / "config.json").read_bytes() == expected


def test_a_new_commit_is_fetched(hub: Hub) -> None:
    hub.add("tiny/a", FILES)
    fetch("tiny/a", HubOptions(), ["*.json"])
    hub.add("tiny/a", {"config.json": b"newer"})
    assert (fetch("tiny/a", HubOptions(), ["*.json"]) / "config.json").read_bytes() == b"newer"


def test_cache_dir(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny/a", FILES)
    folder = fetch("tiny/a", HubOptions(cache_dir=tmp_path / "mine"), ["*"])
    assert folder.is_relative_to(tmp_path / "mine")
    assert not (tmp_path / "cache").exists()


def test_local_dir(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny/a", FILES)
    folder = fetch("tiny/a", HubOptions(local_dir=tmp_path / "mine"), sorted(NAMES))
    assert folder == tmp_path / "mine"
    assert {name: (folder / name).read_bytes() for name in NAMES} == only(NAMES)


def test_local_files_only_takes_the_cache(hub: Hub) -> None:
    hub.add("tiny/a", FILES)
    fetch("tiny/a", HubOptions(), sorted(NAMES))
    hub.requests.clear()
    assert files_of(fetch("tiny/a", HubOptions(local_files_only=True), sorted(NAMES))) == only(NAMES)
    assert hub.requests == []


def test_local_files_only_of_what_was_fetched_in_part(hub: Hub) -> None:
    hub.add("tiny/a", FILES)
    fetch("tiny/a", HubOptions(), ["config.json"])
    with pytest.raises(IncompleteSnapshotError, match=r"^tiny/a: .*model\.flashpack"):
        fetch("tiny/a", HubOptions(local_files_only=True), sorted(NAMES))


def test_what_was_fetched_is_not_fetched_again_unless_forced(hub: Hub) -> None:
    hub.add("tiny/a", FILES)
    fetch("tiny/a", HubOptions(), sorted(NAMES))
    hub.requests.clear()
    fetch("tiny/a", HubOptions(), sorted(NAMES))
    assert hub.downloads() == []
    folder = fetch("tiny/a", HubOptions(force_download=True), ["config.json"])
    assert [path.rpartition("/")[2] for path in hub.downloads()] == ["config.json"]
    assert files_of(folder) == only(NAMES)


@pytest.mark.parametrize("token", [OWNER_TOKEN, READER_TOKEN])
@pytest.mark.parametrize("kind", ["private", "gated"])
def test_a_token_opens(hub: Hub, kind: str, token: str) -> None:
    hub.add("tiny/a", FILES, **{kind: True})
    assert files_of(fetch("tiny/a", HubOptions(token=token), sorted(NAMES))) == only(NAMES)


def test_the_token_of_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("tiny/a", FILES, private=True)
    monkeypatch.setenv("HF_TOKEN", READER_TOKEN)
    assert files_of(fetch("tiny/a", HubOptions(), sorted(NAMES))) == only(NAMES)


def test_a_broken_download_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)  # what it keeps when it breaks
    hub.add("tiny/a", FILES)
    hub.cut_after = 1000
    folder = fetch("tiny/a", HubOptions(), sorted(NAMES))
    assert files_of(folder) == only(NAMES)
    assert "bytes=1000-" in hub.ranges


FAILURES: list[tuple[str, Mapping[str, Any], type[Exception], str]] = [
    ("absent", {}, RepositoryNotFoundError, "neither a local folder nor a repository that exists"),
    ("absent", {"token": OWNER_TOKEN}, RepositoryNotFoundError, "nor a repository that exists"),
    ("private", {}, RepositoryNotFoundError, "a private one needs a token"),
    ("private", {"token": STRANGER_TOKEN}, RepositoryNotFoundError, "a private one needs a token"),
    (
        "private",
        {"token": "hf_made_up"},
        HfHubHTTPError,
        "no permission: the hub refuses the token, or the lack of one",
    ),
    ("gated", {"token": STRANGER_TOKEN}, GatedRepoError, "is gated"),
    ("open", {"revision": "v9"}, RevisionNotFoundError, "has no revision 'v9'"),
    ("open", {"local_files_only": True}, LocalEntryNotFoundError, "cannot be asked"),
]


@pytest.mark.parametrize(("name", "options", "kind", "reason"), FAILURES)
def test_failures_name_the_repository_and_the_reason(
    hub: Hub, name: str, options: Mapping[str, Any], kind: type[Exception], reason: str
) -> None:
    hub.add("tiny/open", FILES)
    hub.add("tiny/private", FILES, private=True)
    hub.add("tiny/gated", FILES, gated=True)
    with pytest.raises(kind) as caught:
        fetch(f"tiny/{name}", HubOptions(**options), ["*"])
    message = str(caught.value)
    assert message.startswith(f"tiny/{name}: ")
    assert reason in message
    assert "\n" not in message


def test_a_hub_that_cannot_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.add("tiny/a", FILES)
    fetch("tiny/a", HubOptions(), sorted(NAMES))
    gone = Hub()
    gone.url = "http://127.0.0.1:9"  # the discard port: nobody listens there
    connect(gone, monkeypatch, tmp_path / "cache")
    assert files_of(fetch("tiny/a", HubOptions(), sorted(NAMES))) == only(NAMES)
    with pytest.raises(LocalEntryNotFoundError, match=r"^tiny/b: .* cannot be asked \(.+\)$"):
        fetch("tiny/b", HubOptions(), ["*"])


def test_offline_mode(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("tiny/a", FILES)
    fetch("tiny/a", HubOptions(), sorted(NAMES))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert files_of(fetch("tiny/a", HubOptions(), sorted(NAMES))) == only(NAMES)
    with pytest.raises(LocalEntryNotFoundError, match=r"^tiny/b: .*cannot be asked"):
        fetch("tiny/b", HubOptions(), ["*"])
    assert hub.requests == []


@pytest.mark.parametrize("name", ["../evil.json", "unet/../../../evil.json", "/evil.json"])
def test_a_listing_that_leads_out_of_the_cache_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.add("tiny/a", {**FILES, name: b"evil"})
    with pytest.raises((ValueError, OSError)):
        fetch("tiny/a", HubOptions(), ["*.json"])
    outside = [path for path in tmp_path.rglob("*evil*") if path.is_file()]
    assert outside == []
    assert not Path("/evil.json").exists()


def test_hub_options_are_taken_out_of_arguments() -> None:
    given = {"revision": "v1", "token": None, "proxies": {}, "local_dir_use_symlinks": True, "dtype": "x"}
    assert HubOptions.take(given) == HubOptions(revision="v1")
    assert given == {"dtype": "x"}


# Pushing.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my-model"
    for name in ("config.json", "model.flashpack", "notes.secret"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(FILES.get(name, b"do not tell"))
    return made


def card_writer(folder: Path) -> Callable[[str], None]:
    def write(repo_id: str) -> None:
        (folder / "README.md").write_text(f"# {repo_id}")

    return write


def pushed(folder: Path, **options: Any) -> str:
    return push(
        folder, PushOptions(token=OWNER_TOKEN, **options), card_writer(folder), ["*.json", "*.flashpack"]
    )


@pytest.mark.parametrize("private", [None, False, True])
def test_push_creates_the_repository(hub: Hub, folder: Path, private: bool | None) -> None:
    assert pushed(folder, repo_id="tiny/new", private=private) == "tiny/new"
    repository = hub.repositories["tiny/new"]
    assert repository.private is bool(private)
    files = {name: data for name, data in repository.head.files.items() if name != ".gitattributes"}
    assert files == {**only(NAMES), "README.md": b"# tiny/new"}
    assert repository.head.message == "Upload FlashPack weights"


def test_the_folder_names_the_repository(hub: Hub, folder: Path) -> None:
    assert pushed(folder) == "tiny/my-model"
    assert hub.repositories["tiny/my-model"].head.files["README.md"] == b"# tiny/my-model"


def test_push_to_a_repository_that_exists(hub: Hub, folder: Path) -> None:
    hub.add("tiny/old", {"config.json": b"old", "other.txt": b"stays"})
    pushed(folder, repo_id="tiny/old", commit_message="Second")
    head = hub.repositories["tiny/old"].head
    assert head.message == "Second"
    assert head.files["config.json"] == FILES["config.json"]
    assert head.files["other.txt"] == b"stays"


@pytest.mark.parametrize("token", [OWNER_TOKEN, STRANGER_TOKEN])
def test_push_as_a_pull_request(hub: Hub, folder: Path, token: str) -> None:
    hub.add("tiny/old", {"config.json": b"old"})
    options = PushOptions("tiny/old", token=token, create_pr=True, commit_message="Please")
    push(folder, options, card_writer(folder), ["*.json"])
    repository = hub.repositories["tiny/old"]
    assert repository.head.files == {"config.json": b"old"}
    (proposed,) = repository.pull_requests
    assert proposed.message == "Please"
    assert proposed.files == {"config.json": FILES["config.json"], "README.md": b"# tiny/old"}


def test_what_was_pushed_is_fetched(hub: Hub, folder: Path) -> None:
    pushed(folder, repo_id="tiny/new", private=True)
    assert hub.repositories["tiny/new"].private
    assert files_of(fetch("tiny/new", HubOptions(token=READER_TOKEN), sorted(NAMES))) == only(NAMES)


PUSH_FAILURES: list[tuple[str, str | None, type[Exception]]] = [
    ("tiny/new", None, HfHubHTTPError),
    ("tiny/new", "hf_made_up", HfHubHTTPError),
    ("tiny/new", READER_TOKEN, HfHubHTTPError),
    ("tiny/old", READER_TOKEN, HfHubHTTPError),
    ("others/new", OWNER_TOKEN, HfHubHTTPError),
]


@pytest.mark.parametrize(("repo_id", "token", "kind"), PUSH_FAILURES)
def test_a_push_without_permission(
    hub: Hub, folder: Path, repo_id: str, token: str | None, kind: type[Exception]
) -> None:
    hub.add("tiny/old", {"config.json": b"old"})
    with pytest.raises(kind, match=f"^{repo_id}: no permission") as caught:
        push(folder, PushOptions(repo_id, token=token), card_writer(folder), ["*"])
    assert "\n" not in str(caught.value)
    assert set(hub.repositories) == {"tiny/old"}
    assert hub.repositories["tiny/old"].head.files == {"config.json": b"old"}
