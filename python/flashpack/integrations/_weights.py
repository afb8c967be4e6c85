"""The weights of a model in a folder or a repository."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable
from pathlib import Path

from .._core import native
from .._core.paths import StrPath, is_url, shown_url
from .._files.folder import SUFFIX, checked_subfolder, index_path, weights_name
from .._files.sources import resolved_path
from .._hub.client import HubOptions, fetch


def _weights_in(folder: Path, variant: str | None) -> Path | None:
    path = folder / weights_name(variant)
    return next((each for each in (path, index_path(path)) if each.is_file()), None)


def has_weights(source: StrPath, inside: str, variant: str | None = None) -> bool:
    """Whether the folder `inside` another, which may be at a URL, has weights, whole or as shards."""
    if is_url(source):
        return _object_among(_names_at(_url_below(source, inside)), variant) is not None
    return _weights_in(Path(source, inside), variant) is not None


def _names_at(url: str) -> list[str]:
    return [entry["name"] for entry in native.call("list", path=url, deep=False)]


def _object_among(names: Collection[str], variant: str | None) -> str | None:
    name = Path(weights_name(variant))
    return next((each for each in (name.name, index_path(name).name) if each in names), None)


def _url_below(url: str, *inside: str) -> str:
    """The URL of what lies `inside` the folder at `url`, which keeps its query."""
    place, mark, query = url.partition("?")
    return "/".join([place.rstrip("/"), *filter(None, inside)]) + mark + query


def find_weights(folder: Path, variant: str | None = None) -> Path:
    """The weights in `folder`, or their index. Raises FileNotFoundError, saying what is there instead."""
    found = _weights_in(folder, variant)
    if found is None:
        raise _missing(variant, [entry.name for entry in folder.glob("*")], str(folder))
    return found


def _missing(variant: str | None, names: Iterable[str], shown: str) -> FileNotFoundError:
    others = sorted(name for name in names if name.endswith(SUFFIX))
    there = f"; there are {', '.join(others)}" if others else ""
    return FileNotFoundError(errno.ENOENT, f"No {weights_name(variant)} in the folder{there}", shown)


def weights_patterns(variant: str | None = None) -> list[str]:
    """The name of a folder's weights, and patterns of what there is instead when they were too large."""
    name = Path(weights_name(variant))
    return [name.name, index_path(name).name, f"{name.stem}-*-of-*{name.suffix}"]


def fetch_weights(
    source: StrPath, hub: HubOptions, subfolder: str | None, variant: str | None, beside: Iterable[str]
) -> tuple[Path, str]:
    """The folder with the files named `beside`, and the path of the weights of a model in a folder or a
    repository; of a folder at a URL the weights' own.

    Raises what `fetch` and `find_weights` raise, and ValueError for a subfolder that leads out.
    """
    inside = checked_subfolder(subfolder)
    prefix = f"{inside}/" if inside else ""
    names = [prefix + name for name in beside]
    if is_url(source):
        source = resolved_path(source)
        place = _url_below(source, inside)
        found = _object_among(there := _names_at(place), variant)
        if found is None:
            raise _missing(variant, there, shown_url(place))
        return fetch(source, hub, names) / inside, _url_below(place, found)
    folder = fetch(source, hub, [*names, *(prefix + name for name in weights_patterns(variant))])
    return folder / inside, str(find_weights(folder / inside, variant))
