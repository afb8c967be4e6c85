"""A pipeline's folder: its index, the files of it that a load needs, and how diffusers gets to see it."""

from __future__ import annotations

import errno
import functools
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ..._core.paths import StrPath, is_url
from ..._files.folder import COMPANIONS, PIPELINE, require_config
from ..._files.sources import KINDS, shown_path
from ..._hub.client import HubOptions, fetch
from .._weights import has_weights, weights_patterns
from ._classes import (
    LIBRARIES,
    Entry,
    exact_class,
    holds_several,
    is_diffusers_module,
    is_transformers_model,
    saved_class,
)

Dtypes = torch.dtype | Mapping[str, Any] | None


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
    return entry.library in LIBRARIES and exact_class(*entry) is not None


def _as_resolved(entry: Entry) -> list[str]:
    """The entry, or one of the class it was derived from; diffusers says what is wrong with any other."""
    found = saved_class(entry)
    if found is None or exact_class(*entry) is found:
        return [*entry]
    library = found.__module__.split(".")[0]
    return [library if library in LIBRARIES else found.__module__, found.__name__]


def fetch_pipeline(source: StrPath, hub: HubOptions, variant: str | None) -> tuple[Path, Index]:
    """The local folder of a pipeline and its index; what it lacks of a repository is downloaded.

    Of a URL, FlashPack files stay there. Raises what `fetch` and `read_index` raise.
    """
    if is_url(source):
        place: StrPath = source
        folder = fetch(source, hub, [PIPELINE])
        index = read_index(folder)
        small = [f"{name}/{pattern}" for name in index.entries for pattern in COMPANIONS]
        fetch(source, hub, [*COMPANIONS, *small])
    else:
        place = folder = fetch(source, hub, [*COMPANIONS, *_packed("*", variant)])
        index = read_index(folder)
    if Path(source).is_dir():
        return folder, index

    def fetch_more(names: Iterable[str], files_of: Callable[[str], list[str]]) -> Path:
        patterns = [pattern for name in names for pattern in files_of(name)]
        try:
            return fetch(source, hub, patterns) if patterns else folder
        except FileNotFoundError:
            if is_url(source):  # which has none of them
                return folder
            raise

    library = _plain
    if variant is not None:
        library = functools.partial(_of_variant, variant)
        unpacked = _unpacked(place, index, variant)
        folder = fetch_more(unpacked, library)
        if not is_url(source):
            folder = fetch_more(_lacking(folder, unpacked, library), functools.partial(_packed, variant=None))
    unpacked = _unpacked(place, index, variant, None)
    return fetch_more(_lacking(folder, unpacked, library), _plain), index


def _packed(component: str, variant: str | None) -> list[str]:
    return [f"{component}/{name}" for name in weights_patterns(variant)]


def _unpacked(place: StrPath, index: Index, *variants: str | None) -> list[str]:
    """The components that are models and have no FlashPack file of these variants in their folder at `place`.

    One that holds several models comes with a pattern for the folders of all but the first.
    """
    names: list[str] = []
    for component, entry in index.entries.items():
        cls = saved_class(entry)
        if _is_model(cls) and not any(has_weights(place, component, variant) for variant in variants):
            names += [component, f"{component}_*"] if cls and holds_several(cls) else [component]
    return names


def _is_model(cls: type | None) -> bool:
    return cls is None or is_transformers_model(cls) or is_diffusers_module(cls) or holds_several(cls)


def _lacking(folder: Path, names: Iterable[str], files_of: Callable[[str], list[str]]) -> list[str]:
    """Those of the components that have none of their files."""
    return [name for name in names if not any(any(folder.glob(pattern)) for pattern in files_of(name))]


def _of_variant(variant: str, component: str) -> list[str]:
    return [f"{component}/*.{variant}.safetensors", f"{component}/*.{variant}-*.safetensors"]


def _plain(component: str) -> list[str]:
    stems = ("model", "diffusion_pytorch_model")
    return [f"{component}/{stem}{rest}.safetensors" for stem in stems for rest in ("", "-*-of-*")]


def packed_variants(
    place: StrPath, folder: Path, names: Iterable[str], variant: str | None
) -> dict[str, str | None]:
    """Which of the components have a FlashPack file at `place`, and of which variant it is to be loaded.

    The plain file stands in where a component has no weights of the variant, in any format. Raises
    FileNotFoundError when no component has any.
    """
    chosen: dict[str, str | None] = {}
    for name in names:
        if variant is not None and has_weights(place, name, variant):
            chosen[name] = variant
        elif has_weights(place, name) and not _library_variant(folder / name, variant):
            chosen[name] = None
    if variant is not None and variant not in chosen.values() and not library_variant(folder, names, variant):
        raise FileNotFoundError(
            errno.ENOENT, f"No component has weights of the variant {variant!r}", shown_path(os.fspath(place))
        )
    return chosen


def library_variant(folder: Path, names: Iterable[str], variant: str | None) -> str | None:
    """`variant` if any of the components has weights of it in a format of diffusers' own, else None."""
    return variant if any(_library_variant(folder / name, variant) for name in names) else None


def _library_variant(folder: Path, variant: str | None) -> bool:
    if variant is None or not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir() if path.suffix in KINDS]
    return any(f".{variant}." in name or f".{variant}-" in name for name in names)


@dataclass(frozen=True)
class Loading:
    """How the components of one pipeline are loaded: `options` are those of `assign_from_file`.

    `arguments` are what diffusers' own loader takes, components among them.
    """

    device: torch.device | None
    dtype: Dtypes
    variant: str | None
    options: Mapping[str, Any]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What is saved in the folder `place` of a pipeline: a component, or one of the models that one holds."""

    component: str
    place: str
    model: Any


def dtype_of(dtypes: Dtypes, component: str) -> Any:
    """The dtype of one component: its own, else that of "default", else None."""
    return dtypes.get(component, dtypes.get("default")) if isinstance(dtypes, Mapping) else dtypes


def is_packable(component: Any) -> bool:
    """Whether the component has weights. Raises TypeError for a module that no config can rebuild."""
    if not isinstance(component, nn.Module):
        return False
    cls = type(component)
    if not is_transformers_model(cls) and not is_diffusers_module(cls):
        raise TypeError(
            f"{cls.__name__} cannot be saved: it is neither a transformers model nor a diffusers.ConfigMixin"
        )
    return True


def save_parts(
    pipeline: Any, parts: Iterable[Part], folder: Path, save: Callable[[Part, Path], None]
) -> None:
    """Save `pipeline` into `folder`; `save` is called for each part with weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if is_packable(part.model):
            save(part, folder / part.place)
        else:
            part.model.save_pretrained(folder / part.place)
    pipeline.save_config(folder)
