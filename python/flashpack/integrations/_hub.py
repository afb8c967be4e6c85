"""Model hubs, through huggingface_hub alone: snapshots of repositories, and pushing folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .._paths import StrPath, text_path


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


def fetch(source: StrPath, options: HubOptions, patterns: Iterable[str]) -> Path:
    """The local folder `source`, or a snapshot of the repository of that id with the files of `patterns`.

    Raises NotADirectoryError for a path to a file, and what `huggingface_hub.snapshot_download` raises.
    """
    folder = Path(text_path(source))
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"expected a folder or a repository id, not a file: {folder}")
    from huggingface_hub import snapshot_download

    arguments = {field.name: getattr(options, field.name) for field in fields(options)}
    return Path(snapshot_download(os.fspath(source), allow_patterns=list(patterns), **arguments))


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

    `write_card` is given the repository's full id and writes README.md into `folder`. Returns the id.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=options.token)
    wanted = options.repo_id or folder.absolute().name
    repo_id = api.create_repo(wanted, private=options.private, exist_ok=True).repo_id
    write_card(repo_id)
    api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=list(patterns),
        create_pr=options.create_pr,
        commit_message=options.commit_message or "Upload FlashPack weights",
    )
    return str(repo_id)
