"""The mixin for diffusers' model classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin
from torch import Tensor

from ..._core.paths import StrPath
from ..._files.folder import CONFIG
from ..._hub.client import PushOptions
from ...constants import DEFAULT_ALIGN_BYTES, DEFAULT_NUM_WRITE_WORKERS
from ...mixin import FlashPackMixin
from .._arguments import check_save_arguments
from .._weights import written_weights
from ._classes import holds_several
from ._model import load_model, save_model
from ._push import push_folder


def save_and_push(
    model: Any,
    save_directory: StrPath,
    *,
    is_main_process: bool = True,
    push_to_hub: bool = False,
    target_dtype: torch.dtype | None = None,
    align_bytes: int = DEFAULT_ALIGN_BYTES,
    silent: bool | None = True,
    num_workers: int = DEFAULT_NUM_WRITE_WORKERS,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    repo_id: str | None = None,
    private: bool | None = None,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
    checksum: str | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Write config.json and model[.variant].flashpack into `save_directory`; push them if asked to.

    `state_dict` is saved instead of the model's own. `target_dtype` casts floating tensors. `max_shard_size`
    and `checksum` as in `pack_to_file`. `repo_id` defaults to the folder's name in the token's account.
    Processes that are not the main one do nothing. `safe_serialization` and `save_function`, which diffusers
    takes, have no effect, and a warning names them.

    Raises what `save_model` raises, TypeError for another keyword argument, ValueError for several models
    that are to be pushed, and what huggingface_hub raises.
    """
    check_save_arguments(kwargs, inspect.signature(save_and_push).parameters)
    if push_to_hub and holds_several(type(model)):
        raise ValueError(f"{type(model).__name__} holds several models: push them one by one")
    if not is_main_process:
        return
    path = save_model(
        model,
        save_directory,
        variant=variant,
        target_dtype=target_dtype,
        align_bytes=align_bytes,
        silent=silent,
        num_workers=num_workers,
        max_shard_size=max_shard_size,
        checksum=checksum,
        state_dict=state_dict,
    )
    if push_to_hub:
        push = PushOptions(repo_id, token, private, create_pr, commit_message)
        push_folder(Path(save_directory), push, [CONFIG, *written_weights(path)], is_pipeline=False)


class FlashPackDiffusersModelMixin(ModelMixin, FlashPackMixin):
    """Mix into a diffusers model class, before or after it. Class attributes as of `FlashPackMixin`."""

    flashpack_init_method: ClassVar[str | None] = "from_config"

    save_pretrained_flashpack = save_and_push
    from_pretrained_flashpack = classmethod(load_model)
