"""Whole pipelines: in a folder like diffusers' own, or in a single file."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..._core.constants import DEFAULT_ALIGN_BYTES, DEFAULT_NUM_WRITE_WORKERS
from ..._core.names import keywords_of, warn_of_unused
from ..._core.paths import StrPath, is_url, text_path
from ..._files.folder import PIPELINE, SUFFIX
from ..._files.sources import pinned, shown_path
from ..._hub.client import HubOptions
from ..._load.options import OPTION_NAMES
from .._build import BUILDING
from .._request import Unpacked, asked, one_device, one_dtype, take_load_options
from .._saving import SaveOptions, refuse_adapters
from ._classes import class_hints, component_class, members_of, pipeline_class, unwrapped
from ._folder import (
    Index,
    Loading,
    Part,
    as_diffusers_reads,
    dtype_of,
    fetch_pipeline,
    is_packable,
    library_variant,
    packed_variants,
    read_index,
    save_parts,
)
from ._single_file import load_components, save_single_file, unpacked
from .model import load_weights, push_with_card, save_weights

__all__ = ["FlashPackDiffusionPipeline"]

# What DiffusionPipeline.from_pretrained takes for what it loads itself, beside components and hub options.
_LIBRARY_ARGUMENTS = {
    *("custom_pipeline", "custom_revision", "disable_mmap", "load_connected_pipeline", "low_cpu_mem_usage"),
    *("max_memory", "offload_folder", "offload_state_dict", "provider", "provider_options", "sess_options"),
    *("trust_remote_code", "use_onnx", "use_safetensors"),
}
_NOT_OPTIONS = ("pipeline", "save_directory", "kwargs")


def save_pipeline(
    pipeline: Any,
    save_directory: StrPath,
    safe_serialization: bool = True,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
    push_to_hub: bool = False,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    repo_id: str | None = None,
    private: bool | None = None,
    is_main_process: bool = True,
    align_bytes: int = DEFAULT_ALIGN_BYTES,
    silent: bool | None = True,
    num_workers: int = DEFAULT_NUM_WRITE_WORKERS,
    target_dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    checksum: str | None = None,
    compress: str | None = None,
    **kwargs: Any,
) -> None:
    """Save every component: those with weights as config.json and model[.variant].flashpack in its folder.

    A path that ends in .flashpack, and is no folder, becomes one file with all of them in it. `target_dtype`
    casts floating tensors: of all components, or by component, with "default" for the rest. `checksum`,
    `compress` and `max_shard_size`, of each component, as in `pack_to_file`. The models of a component that
    holds several go to folders of its name and _1, _2, ... behind it. `repo_id` defaults to the folder's
    name. Processes that are not the main one do nothing. `safe_serialization` and `save_function`, which
    diffusers takes, have no effect, and a warning names them.

    Raises what `pack_to_file` raises; TypeError for another keyword argument and, before anything is
    written, for a component that could not be loaded again; ValueError for a component with PEFT adapters
    inside, a dtype of an unknown one, or a single file that is to be pushed, split or a variant;
    FileExistsError where folders of an earlier save would be taken for models of this one; and what
    huggingface_hub raises.
    """
    given = {name: value for name, value in locals().items() if name not in _NOT_OPTIONS}
    options = SaveOptions.take(given | kwargs)
    if options.state_dict is not None:
        raise ValueError("state_dict: a pipeline has many; give it to save_pretrained_flashpack of a model")
    if is_main_process:
        path = Path(text_path(save_directory))
        _save(pipeline, _parts_of(pipeline, target_dtype, path), path, options)


def _parts_of(pipeline: Any, target_dtype: Any, folder: Path) -> list[Part]:
    """The components that are there, unwrapped, once all of them are known to be savable."""
    components = {name: unwrapped(part) for name, part in pipeline.components.items() if part is not None}
    parts = [
        Part(name, place.name, model)
        for name, component in components.items()
        for place, model in members_of(component, folder / name).items()
    ]
    for part in parts:
        try:
            savable = is_packable(part.model) or hasattr(part.model, "save_pretrained")
            refuse_adapters(part.model)
        except (TypeError, ValueError) as error:
            raise type(error)(f"component {part.place!r}: {error}") from None
        if not savable:
            raise TypeError(
                f"component {part.place!r}: {type(part.model).__name__} cannot be saved: no save_pretrained"
            )
    if isinstance(target_dtype, Mapping):
        unknown = target_dtype.keys() - components.keys() - {"default"}
        if unknown:
            raise ValueError(
                f"target_dtype names unknown components: {sorted(unknown)}; there are {sorted(components)}"
            )
    return parts


def _save(pipeline: Any, parts: Sequence[Part], path: Path, options: SaveOptions) -> None:
    packing, variant = options.packing, options.variant
    if path.suffix == SUFFIX and not path.is_dir():
        if options.push or variant is not None or packing["max_shard_size"] is not None:
            raise ValueError(
                f"{path}: a single file can be neither pushed nor split nor a variant; save to a folder"
            )
        save_single_file(pipeline, parts, path, packing)
        return

    def save(part: Part, folder: Path) -> None:
        dtype = dtype_of(packing["target_dtype"], part.component)
        save_weights(part.model, folder, **{**packing, "variant": variant, "target_dtype": dtype})

    save_parts(pipeline, parts, path, save)
    if options.push:
        patterns = [PIPELINE, *(f"{part.place}/*" for part in parts)]
        push_with_card(path, options.push, patterns, is_pipeline=True)


def load_pipeline(
    cls: Any,
    /,
    pretrained_model_name_or_path: StrPath,
    device: Any = None,
    *,
    dtype: Any = None,
    torch_dtype: Any = None,
    variant: str | None = None,
    device_map: Any = None,
    **arguments: Any,
) -> Any:
    """A pipeline of `cls` from a folder, a repository or one .flashpack file, on `device` (default: the CPU).

    Components with a FlashPack file are loaded from it, all others as diffusers loads them; those given as
    keyword arguments are taken as they are. `dtype`: for all, or by component, with "default" for the rest
    (float32 if left out); without it those of the files. `variant` falls back to a component's plain weights.
    Other arguments are hub options, options of `assign_from_file`, and what `cls.from_pretrained` takes; a
    warning names what none of them takes.

    Called on DiffusionPipeline or FlashPackDiffusionPipeline, the class is the one that was saved.

    Raises what `load_model` and `cls.from_pretrained` raise, FileNotFoundError for a folder without
    pipeline or a variant that no component has, ValueError for a component whose class is not to be found.
    """
    if arguments.get("quantization_config") is not None:
        raise ValueError(
            "quantization_config is for from_pretrained: FlashPack files load as they were saved"
        )
    dtypes = dtype if isinstance(dtype, dict) else torch_dtype
    if isinstance(dtypes, dict):
        dtypes = {"default": torch.float32, **dtypes}  # as in diffusers
    else:
        dtypes = one_dtype(dtype, torch_dtype)
    hub, options = HubOptions.take(arguments), take_load_options(arguments)
    if is_url(pretrained_model_name_or_path):
        options["cache_dir"] = hub.cache_dir
    arguments.pop("use_flashpack", None)  # of what diffusers' own loader is to load, nothing is FlashPack
    loading = Loading(one_device(device, device_map), dtypes, variant, options, arguments)
    source = text_path(pretrained_model_name_or_path)
    shown = shown_path(source)
    if shown.endswith(SUFFIX) and (is_url(source) or Path(source).is_file()):
        pipeline = _load_file(cls, source, loading)
    else:
        source = text_path(pinned(source))
        folder, index = fetch_pipeline(source, hub, variant)
        pipeline = _load_folder(cls, source if is_url(source) else folder, folder, index, loading)
    if loading.device is not None:
        pipeline.to(loading.device)
    pipeline.register_to_config(_name_or_path=shown)
    return pipeline


def _class_of(cls: Any, arguments: dict[str, Any], index: Index) -> Any:
    """The pipeline's class.

    Removes `arguments` that neither its initialiser nor diffusers takes, and warns of those that ask for
    something.
    """
    if cls in (DiffusionPipeline, FlashPackDiffusionPipeline):
        custom = arguments.get("custom_pipeline") is not None
        cls = DiffusionPipeline if custom else pipeline_class(index.content.get("_class_name"))
    named, takes_any = keywords_of(cls.__init__)
    if cls is DiffusionPipeline or takes_any:
        return cls
    unknown = arguments.keys() - named - _LIBRARY_ARGUMENTS
    warn_of_unused(
        unknown & asked(arguments), named | _LIBRARY_ARGUMENTS | OPTION_NAMES | keywords_of(load_pipeline)[0]
    )
    for name in unknown:
        del arguments[name]
    return cls


def _load_file(cls: Any, path: str, loading: Loading) -> Any:
    if loading.variant is not None:
        raise ValueError(f"{shown_path(path)}: a single file has no variants")
    with unpacked(path, loading.options.get("cache_dir")) as (weights, folder):
        index = read_index(folder)
        cls = _class_of(cls, loading.arguments, index)
        wanted = index.entries.keys() - loading.arguments.keys()
        components = load_components(weights, folder, index, wanted, loading)
        return _assemble(cls, weights.shown, folder, index, components, {}, loading)


def _load_folder(cls: Any, place: StrPath, folder: Path, index: Index, loading: Loading) -> Any:
    """Load what is packed, at `place`, and have diffusers load the rest."""
    cls = _class_of(cls, loading.arguments, index)
    wanted = [name for name in index.entries if name not in loading.arguments]
    variants = packed_variants(place, folder, wanted, loading.variant)
    components = {name: place if is_url(place) else folder / name for name in variants}
    return _assemble(cls, shown_path(os.fspath(place)), folder, index, components, variants, loading)


def _assemble(
    cls: Any,
    shown: str,
    folder: Path,
    index: Index,
    components: Mapping[str, StrPath | Unpacked],
    variants: Mapping[str, str | None],
    loading: Loading,
) -> Any:
    """The pipeline that messages call `shown`: components of these sources, and what else is in `folder`.

    Components come one after the other: reads use every core as it is, and building modules holds the GIL
    (Stable Diffusion 1.5's three: 0.21 s, and 0.26 s in three threads on two cores).
    """
    given, hints = dict(loading.arguments), class_hints(cls)
    for name, source in components.items():
        found = component_class(shown, name, index.entries[name], hints)
        how = {"variant": variants.get(name), "dtype": dtype_of(loading.dtype, name), **loading.options}
        if is_url(source):
            how["subfolder"] = name
        given[name] = load_weights(found, source, loading.device, **how)
    rest = [name for name in index.entries if name not in given]
    others = {"dtype": loading.dtype, "variant": library_variant(folder, rest, loading.variant)}
    chosen = {name: value for name, value in others.items() if value is not None}
    with as_diffusers_reads(folder, index, given) as view, BUILDING:
        return cls.from_pretrained(view, **chosen, **given)


class FlashPackDiffusionPipeline(DiffusionPipeline):
    """Mix into a pipeline class, after it; on its own it loads whatever pipeline was saved."""

    save_pretrained_flashpack = save_pipeline
    from_pretrained_flashpack = classmethod(load_pipeline)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _registering(cls.__init__)  # type: ignore[method-assign]


def _registering(initialiser: Callable[..., None]) -> Callable[..., None]:
    """`initialiser`, after which the modules it was given are registered, if it left that out."""
    signature = inspect.signature(initialiser)

    @functools.wraps(initialiser)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        initialiser(self, *args, **kwargs)
        known = getattr(self, "_internal_dict", {})
        _, *given = signature.bind(self, *args, **kwargs).arguments.items()
        for name, value in given:
            if name not in known and _is_component(value):
                self.register_modules(**{name: value})

    return initialise


def _is_component(value: Any) -> bool:
    return isinstance(value, nn.Module) or hasattr(value, "save_pretrained")
