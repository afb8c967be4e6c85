"""Saving a pipeline: to a folder like diffusers' own, or to a single file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..._model_folder import PIPELINE
from ..._paths import StrPath, text_path
from ...constants import DEFAULT_ALIGN_BYTES, DEFAULT_NUM_WRITE_WORKERS
from .._hub import PushOptions
from .._weights import SUFFIX, refuse_adapters
from ._classes import unwrapped
from ._components import dtype_of, is_packable, save_weights
from ._push import push_folder


def save_pipeline(
    pipeline: Any,
    save_directory: StrPath,
    safe_serialization: bool = True,  # noqa: ARG001 (0.4.5's signature; there is one format)
    variant: str | None = None,
    max_shard_size: int | str | None = None,  # noqa: ARG001 (of 0.4.5's signature: each component is one file)
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
    **kwargs: Any,  # noqa: ARG001 (0.4.5 ignored what it did not know)
) -> None:
    """Save every component: those with weights as config.json and model[.variant].flashpack in its folder.

    A path that ends in .flashpack, and is no folder, becomes one file with all of them in it. `target_dtype`
    casts floating tensors: of all components, or by component, with "default" for the rest. `checksum` as in
    `pack_to_file`. `repo_id` defaults to the folder's name. Processes that are not the main one do nothing.

    Raises what `pack_to_file` raises, TypeError for a component that could not be loaded again (before
    anything is written), ValueError for a component with PEFT adapters inside, a dtype of an unknown one, or
    a single file that is to be pushed or be a variant, and what huggingface_hub raises.
    """
    if not is_main_process:
        return
    parts = _parts_of(pipeline, target_dtype)
    packing = {
        "align_bytes": align_bytes,
        "silent": silent,
        "num_workers": num_workers,
        "checksum": checksum,
    }
    path = Path(text_path(save_directory))
    if path.suffix == SUFFIX and not path.is_dir():
        if push_to_hub or variant is not None:
            raise ValueError(f"{path}: a single file can be neither pushed nor a variant; save to a folder")
        from ._single_file import save_single_file

        save_single_file(pipeline, parts, path, target_dtype, packing)
        return

    def save(name: str, model: Any, folder: Path) -> None:
        save_weights(model, folder, variant=variant, target_dtype=dtype_of(target_dtype, name), **packing)

    save_parts(pipeline, parts, path, save)
    if push_to_hub:
        push = PushOptions(repo_id, token, private, create_pr, commit_message)
        push_folder(path, push, [PIPELINE, *(f"{name}/*" for name in parts)], is_pipeline=True)


def save_parts(
    pipeline: Any, parts: Mapping[str, Any], folder: Path, save: Callable[[str, Any, Path], None]
) -> None:
    """Save `pipeline` into `folder`; `save` is called for each component with weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        if is_packable(part):
            save(name, part, folder / name)
        else:
            part.save_pretrained(folder / name)
    pipeline.save_config(folder)


def _parts_of(pipeline: Any, target_dtype: Any) -> dict[str, Any]:
    """The components that are there, unwrapped, once all of them are known to be savable."""
    parts = {name: unwrapped(part) for name, part in pipeline.components.items() if part is not None}
    for name, part in parts.items():
        try:
            savable = is_packable(part) or hasattr(part, "save_pretrained")
            refuse_adapters(part)
        except (TypeError, ValueError) as error:
            raise type(error)(f"component {name!r}: {error}") from None
        if not savable:
            raise TypeError(f"component {name!r}: {type(part).__name__} cannot be saved: no save_pretrained")
    if isinstance(target_dtype, Mapping):
        unknown = target_dtype.keys() - parts.keys() - {"default"}
        if unknown:
            raise ValueError(
                f"target_dtype names unknown components: {sorted(unknown)}; there are {sorted(parts)}"
            )
    return parts
