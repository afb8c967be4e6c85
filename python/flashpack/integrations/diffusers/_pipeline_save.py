"""Saving a pipeline: to a folder like diffusers' own, or to a single file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..._core.paths import StrPath, text_path
from ..._files.folder import PIPELINE
from ..._hub.client import PushOptions
from ...constants import DEFAULT_ALIGN_BYTES, DEFAULT_NUM_WRITE_WORKERS
from .._arguments import check_save_arguments
from .._weights import SUFFIX, refuse_adapters
from ._classes import members_of, unwrapped
from ._components import Part, dtype_of, is_packable, save_parts, save_weights
from ._push import push_folder
from ._single_file import save_single_file


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
    **kwargs: Any,
) -> None:
    """Save every component: those with weights as config.json and model[.variant].flashpack in its folder.

    A path that ends in .flashpack, and is no folder, becomes one file with all of them in it. `target_dtype`
    casts floating tensors: of all components, or by component, with "default" for the rest. `checksum` and
    `max_shard_size`, of each component, as in `pack_to_file`. The models of a component that holds several
    go to folders of its name and _1, _2, ... behind it. `repo_id` defaults to the folder's name. Processes
    that are not the main one do nothing. `safe_serialization` and `save_function`, which diffusers takes,
    have no effect, and a warning names them.

    Raises what `pack_to_file` raises; TypeError for another keyword argument and, before anything is
    written, for a component that could not be loaded again; ValueError for a component with PEFT adapters
    inside, a dtype of an unknown one, or a single file that is to be pushed, split or a variant;
    FileExistsError where folders of an earlier save would be taken for models of this one; and what
    huggingface_hub raises.
    """
    if kwargs.get("state_dict") is not None:
        raise ValueError("state_dict: a pipeline has many; give it to save_pretrained_flashpack of a model")
    given = {**kwargs, "safe_serialization": safe_serialization}
    check_save_arguments(given, inspect.signature(save_pipeline).parameters)
    if not is_main_process:
        return
    path = Path(text_path(save_directory))
    parts = _parts_of(pipeline, target_dtype, path)
    packing: dict[str, Any] = {
        "align_bytes": align_bytes,
        "silent": silent,
        "num_workers": num_workers,
        "checksum": checksum,
    }
    if path.suffix == SUFFIX and not path.is_dir():
        if push_to_hub or variant is not None or max_shard_size is not None:
            raise ValueError(
                f"{path}: a single file can be neither pushed nor split nor a variant; save to a folder"
            )
        save_single_file(pipeline, parts, path, target_dtype, packing)
        return

    packing |= {"variant": variant, "max_shard_size": max_shard_size}

    def save(part: Part, folder: Path) -> None:
        save_weights(part.model, folder, target_dtype=dtype_of(target_dtype, part.component), **packing)

    save_parts(pipeline, parts, path, save)
    if push_to_hub:
        push = PushOptions(repo_id, token, private, create_pr, commit_message)
        push_folder(path, push, [PIPELINE, *(f"{part.place}/*" for part in parts)], is_pipeline=True)


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
