"""model_index.json: what a pipeline's folder holds, and how diffusers gets to see it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..._files.folder import PIPELINE, require_config
from ._classes import Entry, exact_class, saved_class

_CHECKED_LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True)
class Index:
    """The content of model_index.json, with its components that are not null."""

    content: Mapping[str, Any]
    entries: Mapping[str, Entry]


def read_index(folder: Path) -> Index:
    """Raises FileNotFoundError for a folder without index, ValueError for one that is no JSON object."""
    content = require_config(folder, PIPELINE)
    return Index(content, {name: Entry(*value) for name, value in content.items() if _is_entry(name, value)})


def _is_entry(name: str, value: Any) -> bool:
    if name.startswith("_") or not isinstance(value, list) or len(value) != 2:
        return False
    return all(isinstance(part, str) for part in value)


@contextmanager
def as_diffusers_reads(folder: Path, index: Index, given: Collection[str]) -> Iterator[Path]:
    """`folder`, or a temporary view of it whose index diffusers understands.

    diffusers looks up the class of every component, also of those that it is `given`, and cannot where the
    class is in no library or has one of 0.4.5's derived names. The view leaves those out or renames them.
    """
    if all(_is_plain(entry) for entry in index.entries.values()):
        yield folder
        return
    with TemporaryDirectory(prefix="flashpack-") as scratch:
        view = Path(scratch)
        for path in folder.iterdir():
            if path.name != PIPELINE:
                (view / path.name).symlink_to(path.absolute())
        content = {name: value for name, value in index.content.items() if name not in index.entries}
        for name, entry in index.entries.items():
            if name not in given:
                content[name] = _as_resolved(entry)
        (view / PIPELINE).write_text(json.dumps(content), encoding="utf-8")
        yield view


def _is_plain(entry: Entry) -> bool:
    return entry.library in _CHECKED_LIBRARIES and exact_class(entry.library, entry.name) is not None


def _as_resolved(entry: Entry) -> list[str]:
    """The entry, or one of the class it was derived from; diffusers says what is wrong with any other."""
    found = saved_class(entry.library, entry.name)
    if found is None or exact_class(entry.library, entry.name) is found:
        return [entry.library, entry.name]
    library = found.__module__.split(".")[0]
    return [library if library in _CHECKED_LIBRARIES else found.__module__, found.__name__]
