"""Model hubs, through huggingface_hub alone: snapshots of repositories, and pushing folders."""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from http import HTTPStatus
from pathlib import Path
from typing import Any

from .._core.names import listed
from .._core.paths import StrPath, is_url, shown_url, text_path
from .objects import fetch_objects

_REPO_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
CARD_NAME = "README.md"


@dataclass(frozen=True)
class HubOptions:
    """Where a repository's files come from; the names and meanings are huggingface_hub's."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: StrPath | None = None
    local_dir: StrPath | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def take(cls, arguments: dict[str, Any]) -> HubOptions:
        """Build the options from those of `arguments` that are hub options, and remove them there.

        `proxies` and `local_dir_use_symlinks` go as well: 0.4.5 took them, huggingface_hub no longer does.
        """
        for name in ("proxies", "local_dir_use_symlinks"):
            arguments.pop(name, None)
        names = [field.name for field in fields(cls) if field.name in arguments]
        given = {name: arguments.pop(name) for name in names}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def refuse_for(self, url: str) -> None:
        """Raise ValueError for options that a URL leaves without meaning: all but `cache_dir`."""
        given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        if meaningless := [name for name in given if name != "cache_dir"]:
            raise ValueError(
                f"{shown_url(url)}: {listed(meaningless)} are for repositories: a URL has its revision "
                "(hf://owner/name@revision), and the environment its token"
            )


def fetch(source: StrPath, options: HubOptions, patterns: Iterable[str], *, quiet: bool = False) -> Path:
    """The local folder `source`, or the files of `patterns` of the repository of that id, or of a URL.

    The client shows its progress unless `quiet`.
    Raises ValueError for options that say nothing of a URL, NotADirectoryError for a path to a file,
    FileNotFoundError for what can only be a path and is not there, and what
    `huggingface_hub.snapshot_download` raises, in a sentence that names the repository.
    """
    text = text_path(source)
    if is_url(text):
        options.refuse_for(text)
        return fetch_objects(text, patterns)
    folder = Path(text)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(
            errno.ENOTDIR, "expected a folder or a repository id, not a file", str(folder)
        )
    if not is_repo_id(text):
        raise FileNotFoundError(errno.ENOENT, "Not a folder or a valid repository id", text)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{text} is no folder, and repositories need huggingface_hub: pip install flashpack[hub]"
        ) from error

    arguments = {field.name: getattr(options, field.name) for field in fields(options)}
    if quiet:
        arguments["tqdm_class"] = _quiet_bar()
    with _naming(text, options.revision):
        return Path(snapshot_download(text, allow_patterns=list(patterns), **arguments))


def _quiet_bar() -> type:
    shown: Any = importlib.import_module("huggingface_hub.utils").tqdm

    class QuietBar(shown):  # type: ignore[misc] # the client gives it no types
        """The client's progress bar, never shown."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return QuietBar


def is_repo_id(text: str) -> bool:
    """Whether `text` can be a repository's id: `name` or `owner/name`, which a path may look like too."""
    return _REPO_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


@contextmanager
def _naming(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Give the client's errors one sentence that says which repository and what is wrong; types stay."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        error.args = (f"{repo_id}: {_reason(error, revision)}",)
        raise


def _reason(error: Exception, revision: str | None) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError):
        at = f" at revision {revision}" if revision else ""
        return (
            f"neither a local folder nor a repository that is wholly in the cache{at}, and the hub cannot be "
            f"asked ({_first_line(error.__cause__ or error)})"
        )
    if isinstance(error, GatedRepoError):
        return "the repository is gated: its terms must be accepted, and a token passed"
    if isinstance(error, RepositoryNotFoundError):
        return "neither a local folder nor a repository that exists; a private one needs a token"
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no revision {revision!r}"
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"no permission: the hub refuses the token, or the lack of one ({_first_line(error)})"
    return f"the hub answers with an error: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


@dataclass(frozen=True)
class PushOptions:
    """What a save pushes; the names and meanings are those of the libraries' own save_pretrained."""

    repo_id: str | None = None
    token: str | bool | None = None
    private: bool | None = None
    create_pr: bool = False
    commit_message: str | None = None


def push(
    folder: Path, options: PushOptions, write_card: Callable[[str], None], patterns: Iterable[str]
) -> str:
    """Create the repository unless it exists, and upload the files of `folder` that match `patterns`.

    `write_card` is given the repository's full id and writes README.md into `folder`; it goes up too.
    Returns the id. Raises what huggingface_hub raises, in a sentence that names the repository.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=options.token)
    wanted = options.repo_id or folder.absolute().name
    with _naming(wanted):
        repo_id = str(api.create_repo(wanted, private=options.private, exist_ok=True).repo_id)
        write_card(repo_id)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[*patterns, CARD_NAME],
            create_pr=options.create_pr,
            commit_message=options.commit_message or "Upload FlashPack weights",
        )
    return repo_id
