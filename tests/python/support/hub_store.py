"""What the stand-in for a model hub holds: repositories, their commits, and who may see them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

OWNER = "tiny"  # the account that the owner's token belongs to
OWNER_TOKEN = "hf_owner"  # reads and writes everything of the account
READER_TOKEN = "hf_reader"  # reads private repositories, writes nothing
STRANGER_TOKEN = "hf_stranger"  # a valid token with rights to nothing private
TOKENS = (OWNER_TOKEN, READER_TOKEN, STRANGER_TOKEN)
LARGE_SUFFIXES = (".safetensors", ".flashpack", ".bin")  # what the hub keeps as large files


@dataclass
class Commit:
    """One state of a repository."""

    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Its commits, and the branches (and pull requests) that name some of them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], message: str, ref: str, parent: str | None = None) -> Commit:
        """A new commit on `ref`: the files of `parent` (a ref; by itself `ref`), updated by `files`."""
        base = self.find(parent or ref)
        number = f"{len(self.commits)}".encode()
        made = Commit(
            hashlib.sha1(number + id(self).to_bytes(8, "little")).hexdigest(),
            message,
            {**(base.files if base else {}), **files},
        )
        self.commits[made.sha] = made
        self.refs[ref] = made.sha
        return made

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch's name or of a commit's hash."""
        return self.commits.get(self.refs.get(revision, revision))

    @property
    def head(self) -> Commit:
        """What is on the main branch."""
        return self.commits[self.refs["main"]]

    @property
    def pull_requests(self) -> list[Commit]:
        """The heads of all pull requests, oldest first."""
        return [self.commits[sha] for ref, sha in self.refs.items() if ref.startswith("refs/pr/")]


def blob_id(data: bytes) -> str:
    """git's name of a regular file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str) -> bool:
    """Whether the hub keeps the file outside of git."""
    return path.endswith(LARGE_SUFFIXES)


class PushAt(list[tuple[str, str]]):
    """The requests of `hub`. Before the answer to that of this `number`, from 1 on, `files` are pushed."""

    def __init__(self, hub: Hub, repo_id: str, files: Mapping[str, bytes], number: int) -> None:
        super().__init__()
        self.hub, self.repo_id, self.files, self.number = hub, repo_id, files, number

    def append(self, request: tuple[str, str], /) -> None:
        super().append(request)
        if len(self) == self.number:
            self.hub.add(self.repo_id, self.files)


class Hub:
    """The repositories, what was uploaded, and every request that came."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.cut_after: int | None = None  # break off the next download of a large file after so many bytes
        self.url = ""
        self.store_url = ""  # where large files are: another host, as on the real hub

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | Path,
        *,
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> Repository:
        """Commit `files`, or the content of a folder, to a repository, new or not."""
        if isinstance(files, Path):
            found = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        repository = self.repositories.setdefault(repo_id, Repository(private, gated))
        repository.commit(files, "added by a test", revision)
        if "main" not in repository.refs:
            repository.refs["main"] = repository.refs[revision]
        return repository

    def may_read(self, repository: Repository, token: str | None) -> bool:
        """Whether the token opens a private or gated repository."""
        return not (repository.private or repository.gated) or token in (OWNER_TOKEN, READER_TOKEN)

    def environment(self, cache: Path) -> dict[str, str]:
        """What a fresh interpreter needs in its environment to talk to this hub, and to nothing else."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def asked(self) -> set[str]:
        """The names of all files that were asked for, whether for their content or only for their state."""
        return {path.partition("/resolve/")[2].partition("/")[2] for _, path in self.requests} - {""}

    def downloads(self) -> list[str]:
        """The paths of all contents that were sent, in order; of large files by their hash."""
        kinds = ("/resolve/", "/large/")
        return [path for method, path in self.requests if method == "GET" and any(k in path for k in kinds)]
