"""A whole pipeline in one .flashpack: tensors named component.tensor, every other file in the metadata."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..._core.errors import FlashPackError
from ..._files.folder import PIPELINE
from ..._files.opened import OpenModel
from ..._load.load import load_tensors
from ..._save.pack import pack_to_file
from .._arguments import load_options
from .._weights import BUILDING, FileDtypes, build_and_fill
from . import _dtypes
from ._classes import (
    class_hints,
    component_class,
    holds_several,
    is_diffusers_module,
    is_transformers_model,
    member_folders,
    model_class,
    named_class,
)
from ._components import Dtypes, Loading, Part, dtype_of, save_parts
from ._embedded import embed_files, restore_files
from ._index import Index, as_diffusers_reads, read_index

_Build = Callable[[FileDtypes], Any]


def save_single_file(
    pipeline: Any, parts: Iterable[Part], path: Path, target_dtype: Dtypes, packing: Mapping[str, Any]
) -> None:
    """Write the `parts` of `pipeline` to `path`.

    Raises what `pack_to_file` raises, and ValueError for a quantized component.
    """
    tensors: dict[str, Tensor] = {}

    def save(part: Part, folder: Path) -> None:
        _save_config(part.model, folder)
        state = _cast(part.model.state_dict(), dtype_of(target_dtype, part.component))
        tensors.update({f"{part.place}.{key}": value for key, value in state.items()})

    with TemporaryDirectory(prefix="flashpack-") as scratch:
        folder = Path(scratch)
        save_parts(pipeline, parts, folder, save)
        pack_to_file(tensors, path, metadata=embed_files(folder), **packing)


def _save_config(model: Any, folder: Path) -> None:
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"{type(model).__name__} is quantized: save the pipeline to a folder instead")
    if not is_transformers_model(type(model)):
        model.save_config(folder)
        return
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def load_single_file(
    class_of: Callable[[Any], Any], path: Path, loading: Loading, arguments: dict[str, Any]
) -> Any:
    """The pipeline in the file `path`; `class_of` gives its class for its index.

    Raises FlashPackError for an unsound file, ValueError for one that holds no pipeline or that does not
    fit the classes of its components.
    """
    if loading.variant is not None:
        raise ValueError(f"{path}: a single file has no variants")
    weights = OpenModel(str(path))
    footer = weights.footer
    with TemporaryDirectory(prefix="flashpack-") as scratch:
        folder = Path(scratch)
        restore_files(footer.get("metadata", {}), folder, path)
        if not (folder / PIPELINE).is_file():
            raise FlashPackError(f"{path}: the file holds no pipeline: its metadata has no {PIPELINE}")
        index = read_index(folder)
        cls = class_of(index)
        hints = class_hints(cls)
        wanted = [name for name in index.entries if name not in arguments]
        parts = _load_parts(weights, [record["name"] for record in footer["index"]], index, wanted, loading)
        loaded = {}
        for name in dict.fromkeys(_component_of(place, index) for place in parts):
            found = component_class(path, name, index.entries[name], hints)
            loaded[name] = _load_component(found, folder / name, parts, path, loading)
        given = {**loaded, **arguments}
        with as_diffusers_reads(folder, index, given) as view, BUILDING:
            return cls.from_pretrained(view, **given)


def _component_of(place: str, index: Index) -> str:
    """The component that a part belongs to: of several models in one, all but the first have numbers."""
    return place if place in index.entries else place.rpartition("_")[0]


def _load_parts(
    weights: OpenModel, names: list[str], index: Index, wanted: list[str], loading: Loading
) -> dict[str, dict[str, Tensor]]:
    """The tensors of the wanted components, read together, by part."""
    options = load_options(object, loading.arguments, loading.device, reports=False)
    parts: dict[str, dict[str, Tensor]] = {}
    chosen = [name for name in names if _component_of(name.partition(".")[0], index) in wanted]
    device = torch.device(loading.device or "cpu")
    tensors = load_tensors(
        weights, device, names=chosen, eager=options.eager, verify=options.verify, silent=options.shown
    )
    for name, tensor in tensors.items():
        place, _, rest = name.partition(".")
        parts.setdefault(place, {})[rest] = tensor
    return parts


def _load_component(
    cls: Any, folder: Path, parts: Mapping[str, Mapping[str, Tensor]], path: Path, loading: Loading
) -> Any:
    name = folder.name
    if not holds_several(cls):
        return _load_part(cls, name, folder, parts[name], path, loading)
    members = itertools.takewhile(lambda place: place.name in parts, member_folders(folder))
    return cls(
        [
            _load_part(model_class(place, *named_class(place)), name, place, parts[place.name], path, loading)
            for place in members
        ]
    )


def _load_part(
    cls: Any, name: str, folder: Path, tensors: Mapping[str, Tensor], path: Path, loading: Loading
) -> Any:
    options = load_options(cls, loading.arguments, loading.device, reports=False)
    dtype = dtype_of(loading.dtype, name)
    if is_transformers_model(cls):
        build = _transformers_build(cls, folder, tensors, dtype)
    elif is_diffusers_module(cls):
        build = _diffusers_build(cls, folder, dtype)
    else:
        raise TypeError(f"{path}: {cls.__name__} is neither a transformers model nor a diffusers.ConfigMixin")
    model, info = build_and_fill(build, tensors, path, options)
    _dtypes.cast(model, dtype, info.missing_keys)
    _restore_generation_config(model, folder)
    return model


def _transformers_build(cls: Any, folder: Path, tensors: Mapping[str, Tensor], dtype: Any) -> _Build:
    from ..transformers._build import build_as_loaded, is_plain_float, main_dtype

    config = cls.config_class.from_pretrained(folder)
    return lambda _: build_as_loaded(
        cls, config, dtype if is_plain_float(dtype) else main_dtype(config, tensors)
    )


def _diffusers_build(cls: Any, folder: Path, dtype: Any) -> _Build:
    config = cls.load_config(folder)

    def build(stored: FileDtypes) -> Any:
        with _dtypes.default_dtype(dtype or _dtypes.main_dtype(cls, stored)):
            return cls.from_config(config)

    return build


def _restore_generation_config(model: Any, folder: Path) -> None:
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """`state` with its floating tensors in `dtype`; tied ones stay tied."""
    copies: dict[tuple[object, ...], Tensor] = {}
    cast = {}
    for name, tensor in state.items():
        if dtype is None or not tensor.is_floating_point():
            cast[name] = tensor
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        cast[name] = copies.setdefault(key, tensor.to(dtype)) if tensor.numel() else tensor.to(dtype)
    return cast
