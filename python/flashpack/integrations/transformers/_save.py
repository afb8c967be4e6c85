"""Saving a model to a folder: weights, configurations, code that is not transformers' own, and a push."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.hub import create_and_tag_model_card

from ..._core.paths import StrPath
from ..._files.folder import CONFIG, weights_name
from ..._hub.client import CARD_NAME, push
from ..._save.pack import pack_to_file, whole_state_dict
from .._saving import SaveOptions, folder_to_save, refuse_adapters, written_weights
from ._config import GENERATION_CONFIG, architecture_of


def save_model(
    model: PreTrainedModel,
    save_directory: StrPath,
    *,
    save_original_format: bool = False,
    distributed_checkpoint: bool = False,
    **kwargs: Any,
) -> None:
    """Write the weights to `model.flashpack` (`model.<variant>.flashpack`) of a folder, with configurations.

    The folder is made unless it exists. Keyword arguments: `target_dtype`, `align_bytes`, `silent`,
    `num_workers`, `max_shard_size`, `checksum` and `compress` as in `pack_to_file`; `variant`;
    `state_dict`, saved instead of the model's own; `is_main_process=False`, with which nothing is done.
    `push_to_hub=True` pushes what was written to `repo_id` or a repository named as the folder, as
    `private`, `token`, `create_pr` and `commit_message` say. Parameters that accelerate has
    offloaded are read into memory to be saved.

    `save_original_format=True` stores the names and shapes of the checkpoints that the class was published
    with, as transformers' `save_pretrained` does; by default the model's own are stored, which load without
    conversion. The rest of what `save_pretrained` takes makes no difference to a FlashPack file: a
    `save_function` and `safe_serialization=False` cause a warning.

    Raises NotADirectoryError for a path to a file; TypeError for another keyword argument; ValueError for a
    model that cannot be stored: quantised without serialisation, with PEFT adapters inside, or with a tensor
    that `pack_to_file` refuses; for a `state_dict` of a quantised model, and for
    `distributed_checkpoint=True`.
    """
    if distributed_checkpoint:
        raise ValueError("distributed_checkpoint=True: FlashPack files hold whole tensors; gather them first")
    options = SaveOptions.take(kwargs)
    folder = folder_to_save(save_directory)
    if not options.is_main_process:
        return
    state, metadata = _state_of(model, options.state_dict)
    if save_original_format:
        state = revert_weight_conversion(model, dict(state))
    path = folder / weights_name(options.variant)
    pack_to_file(state, path, metadata=metadata, **options.packing)
    configs = _save_configs(model, folder, options.packing.get("target_dtype"))
    if options.push:
        token: Any = options.push.token  # transformers' annotation leaves out that it may be a bool
        tags = [*(model.model_tags or []), "flashpack"]

        def write_card(repo_id: str) -> None:
            """The repository's own card if it has one, tagged; else a new one."""
            create_and_tag_model_card(repo_id, tags, token).save(folder / CARD_NAME)

        push(folder, options.push, write_card, [*written_weights(path), *configs])


def _state_of(
    model: PreTrainedModel, given: Mapping[str, Tensor] | None
) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """What is stored: `given`, the model's state dict, or what its quantiser makes of that; and metadata."""
    refuse_adapters(model)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return whole_state_dict(model) if given is None else given, {}
    if given is not None:
        raise ValueError(f"{type(model).__name__} is quantised: only its own state_dict can be saved")
    if not quantizer.is_serializable():
        raise ValueError(f"{type(model).__name__} is quantised in a way that transformers cannot serialise")
    state, metadata = quantizer.get_state_dict_and_metadata(model)
    texts = {
        str(name): value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()
    }
    return whole_state_dict(model) if state is None else state, texts


def _save_configs(model: PreTrainedModel, folder: Path, dtype: torch.dtype | None) -> list[str]:
    """Write everything but the weights; returns the names of the files."""
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype or model.dtype).removeprefix("torch.")
    config.architectures = [architecture_of(type(model))]
    code: list[str] = []
    if model.is_remote_code():
        save_code: Callable[..., list[str] | None] = custom_object_save
        code = save_code(model, folder, config=config) or []
    config.save_pretrained(folder)
    names = [CONFIG, *(Path(file).name for file in code)]
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
        names.append(GENERATION_CONFIG)
    return names
