"""The part of a hub's repository that a conversion reads, fetched into the client's cache. Needs no torch."""

from __future__ import annotations

import errno
import glob
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .._files.folder import ADAPTER_FILES, COMPANIONS, MODEL_STEMS, PIPELINE, module_folders, weights_name
from .._files.sources import KINDS, files_of, find_weights
from .client import HubOptions, fetch

# Every repository has it, and the client warns when no file matches.
_PRESENT = ".gitattributes"


def download_model(
    repo_id: str, options: HubOptions, subfolder: str, variant: str | None, quiet: bool
) -> Path:
    """The local folder of a model: its small files, adapters, and the first that there are of these weights:
    whole safetensors, sharded safetensors, a whole torch file, sharded torch files.

    Raises what `fetch` raises, FileNotFoundError for a subfolder that the repository lacks, and ValueError
    for an index that is none.
    """
    prefix = f"{glob.escape(subfolder)}/" if subfolder else ""

    def fetch_matching(patterns: Iterable[str]) -> Path:
        wanted = [_PRESENT, *(prefix + pattern for pattern in patterns)]
        return fetch(repo_id, options, wanted, quiet=quiet) / subfolder

    place = fetch_matching(COMPANIONS)
    if (place / PIPELINE).is_file():
        return place
    modules = module_folders(place) if place.is_dir() else []
    if modules:
        fetch_matching(f"{glob.escape(name)}/*" for name in modules)

    def fetch_names(names: Iterable[str]) -> bool:
        """Fetch those that the repository has; whether one of them is there."""
        fetch_matching(glob.escape(name) for name in names)
        return any((place / name).is_file() for name in names)

    fetch_matching(ADAPTER_FILES)
    for suffix in KINDS:
        if fetch_names([weights_name(variant, suffix, stem) for stem in MODEL_STEMS]):
            return place
        with suppress(FileNotFoundError):
            index = find_weights(place, variant, [suffix])
            if index.suffix == ".json" and fetch_names([file.name for file in files_of(index)]):
                return place
    if not place.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"{repo_id}: no model in the repository", subfolder or ".")
    return place
