"""A whole pipeline in one .flashpack: tensors named component.tensor, every other file in the metadata."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..._core.errors import FlashPackError
from ..._core.index import records_of
from ..._core.paths import StrPath
from ..._files.folder import PIPELINE
from ..._files.opened import OpenModel
from ..._load.cast import cast
from ..._load.load import load_tensors
from ..._save.pack import pack_to_file, whole_state_dict
from .._request import Unpacked, load_options
from ._classes import is_transformers_model
from ._folder import Index, Loading, Part, dtype_of, save_parts

# How the names of files begin in the metadata: as text, or as base64 where they are not UTF-8.
_TEXT = "file:"
_BINARY = "base64:"


def save_single_file(pipeline: Any, parts: Iterable[Part], path: Path, packing: Mapping[str, Any]) -> None:
    """Write the `parts` of `pipeline` to `path`; `packing` may have a `target_dtype` for each component.

    Raises what `pack_to_file` raises, and ValueError for a quantized component.
    """
    tensors: dict[str, Tensor] = {}

    def save(part: Part, folder: Path) -> None:
        _save_config(part.model, folder)
        state, dtype = whole_state_dict(part.model), dtype_of(packing["target_dtype"], part.component)
        if dtype is not None:
            dtypes = {name: dtype if each.is_floating_point() else each.dtype for name, each in state.items()}
            state = cast(state, dtypes)
        tensors.update({f"{part.place}.{key}": value for key, value in state.items()})

    with TemporaryDirectory(prefix="flashpack-") as scratch:
        folder = Path(scratch)
        save_parts(pipeline, parts, folder, save)
        pack_to_file(tensors, path, metadata=embed_files(folder), **{**packing, "target_dtype": None})


def _save_config(model: Any, folder: Path) -> None:
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"{type(model).__name__} is quantized: save the pipeline to a folder instead")
    if not is_transformers_model(type(model)):
        model.save_config(folder)
        return
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


@contextmanager
def unpacked(path: str, cache_dir: StrPath | None) -> Iterator[tuple[OpenModel, Path]]:
    """The file at `path`, open, and a temporary folder with the files of the pipeline in it but the weights.

    Raises FlashPackError for an unsound file and for one that holds no pipeline.
    """
    weights = OpenModel(path, cache_dir)
    with TemporaryDirectory(prefix="flashpack-") as scratch:
        folder = Path(scratch)
        restore_files(weights.footer.get("metadata", {}), folder, weights.shown)
        if not (folder / PIPELINE).is_file():
            raise FlashPackError(
                f"{weights.shown}: the file holds no pipeline: its metadata has no {PIPELINE}"
            )
        yield weights, folder


def load_components(
    weights: OpenModel, folder: Path, index: Index, wanted: Collection[str], loading: Loading
) -> dict[str, Unpacked]:
    """The wanted components of the file that was unpacked to `folder`; their tensors are read together."""
    parts: dict[str, dict[str, Tensor]] = {}
    components: dict[str, Unpacked] = {}
    names = [name for name, _, _ in records_of(weights.footer)]
    owners = {name: _component_of(name.partition(".")[0], index) for name in names}
    options = load_options(object, loading.options, loading.device)
    chosen = [name for name, owner in owners.items() if owner in wanted]
    device = loading.device or torch.device("cpu")
    tensors = load_tensors(weights, device, names=chosen, **options.reading)
    for name, tensor in tensors.items():
        place, _, rest = name.partition(".")
        parts.setdefault(place, {})[rest] = tensor
        components[owners[name]] = Unpacked(weights.shown, folder / owners[name], parts)
    return components


def _component_of(place: str, index: Index) -> str:
    """The component that a part belongs to: of several models in one, all but the first have numbers."""
    return place if place in index.entries else place.rpartition("_")[0]


def embed_files(folder: Path) -> dict[str, str]:
    """Every file below `folder` as an entry of metadata, named by its path in it."""
    embedded: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name, data = path.relative_to(folder).as_posix(), path.read_bytes()
            try:
                embedded[_TEXT + name] = data.decode()
            except UnicodeDecodeError:
                embedded[_BINARY + name] = base64.b64encode(data).decode()
    return embedded


def restore_files(metadata: Mapping[str, str], folder: Path, source: str) -> None:
    """Write the files embedded in the metadata of `source` back into `folder`, never outside of it.

    Raises FlashPackError for a name that is not a plain relative path, or for data that is not base64.
    """
    for key, value in metadata.items():
        kind, colon, name = key.partition(":")
        if kind + colon not in (_TEXT, _BINARY):
            continue  # the user's own
        target = folder.joinpath(*_parts(name, source))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(value.encode() if kind + colon == _TEXT else _decoded(name, value, source))


def _parts(name: str, source: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or any(letter in name for letter in "\\:\0")
    if unsafe or not path.parts or ".." in path.parts or str(path) != name:
        raise FlashPackError(f"{source}: the metadata names a file that is not below the pipeline: {name!r}")
    return path.parts


def _decoded(name: str, value: str, source: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FlashPackError(f"{source}: the embedded file {name!r} is not base64: {error}") from error
