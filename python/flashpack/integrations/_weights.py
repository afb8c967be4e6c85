"""The weights of a model in a folder or a repository."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from .._core.paths import StrPath
from .._files.folder import SUFFIX, checked_subfolder, index_path, weights_name
from .._hub.client import HubOptions, fetch


def _weights_in(folder: Path, variant: str | None) -> Path | None:
    path = folder / weights_name(variant)
    return next((each for each in (path, index_path(path)) if each.is_file()), None)


def has_weights(folder: Path, variant: str | None = None) -> bool:
    """Whether `folder` has weights, whole or as shards."""
    return _weights_in(folder, variant) is not None


def find_weights(folder: Path, variant: str | None = None) -> Path:
    """The weights in `folder`, or their index. Raises FileNotFoundError, saying what is there instead."""
    found = _weights_in(folder, variant)
    if found is None:
        others = sorted(entry.name for entry in folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
        there = f"; there are {', '.join(others)}" if others else ""
        name = weights_name(variant)
        raise FileNotFoundError(errno.ENOENT, f"No {name} in the folder{there}", str(folder))
    return found


def weights_patterns(variant: str | None = None) -> list[str]:
    """The name of a folder's weights, and patterns of what there is instead when they were too large."""
    name = Path(weights_name(variant))
    return [name.name, index_path(name).name, f"{name.stem}-*-of-*{name.suffix}"]


def fetch_weights(
    source: StrPath, hub: HubOptions, subfolder: str | None, variant: str | None, beside: Iterable[str]
) -> Path:
    """The weights of a model in a folder or a repository, of which the files named `beside` come, too.

    Raises what `fetch` and `find_weights` raise, and ValueError for a subfolder that leads out.
    """
    inside = checked_subfolder(subfolder)
    prefix = f"{inside}/" if inside else ""
    folder = fetch(source, hub, [prefix + name for name in (*beside, *weights_patterns(variant))])
    return find_weights(folder / inside, variant)
