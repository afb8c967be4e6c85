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
from transformers.dynamic_module_utils import custom_object_save

from ..._model_folder import CONFIG
from ..._paths import StrPath, text_path
from ..._save import pack_to_file
from ...constants import DEFAULT_ALIGN_BYTES, DEFAULT_NUM_WRITE_WORKERS
from .._hub import CARD_NAME, PushOptions, push
from .._weights import refuse_adapters, weights_name, written_weights
from ._names import architecture_of
from ._place import GENERATION_CONFIG


def save_model(
    model: PreTrainedModel,
    save_directory: StrPath,
    *,
    is_main_process: bool = True,
    push_to_hub: bool = False,
    target_dtype: torch.dtype | None = None,
    align_bytes: int = DEFAULT_ALIGN_BYTES,
    silent: bool = True,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    repo_id: str | None = None,
    private: bool | None = None,
    num_workers: int = DEFAULT_NUM_WRITE_WORKERS,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
    checksum: str | None = None,
    **kwargs: Any,  # noqa: ARG001 (0.4.5's signature)
) -> None:
    """Write the weights to `model.flashpack` (`model.<variant>.flashpack`) of a folder, with configurations.

    The folder is made unless it exists. `target_dtype`, `align_bytes`, `silent`, `num_workers`,
    `max_shard_size` and `checksum` as in `pack_to_file`. Only the main process writes and pushes; what is
    pushed is what was written, to `repo_id` or a repository named as the folder. Other keyword arguments
    are accepted and not needed.

    Raises NotADirectoryError for a path to a file; ValueError for a model that cannot be stored: quantised
    without serialisation, with PEFT adapters inside, or with a tensor that `pack_to_file` refuses.
    """
    folder = Path(text_path(save_directory))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"expected a folder to save to, not a file: {folder}")
    if not is_main_process:
        return
    state, metadata = _state_of(model)
    pack_to_file(
        state,
        folder / weights_name(variant),
        target_dtype,
        align_bytes=align_bytes,
        silent=silent,
        num_workers=num_workers,
        metadata=metadata,
        max_shard_size=max_shard_size,
        checksum=checksum,
    )
    written = [*written_weights(folder / weights_name(variant)), *_save_configs(model, folder, target_dtype)]
    if push_to_hub:
        options = PushOptions(repo_id, token, private, create_pr, commit_message)
        push(folder, options, lambda full_id: _write_card(model, folder, full_id, token), written)


def _state_of(model: PreTrainedModel) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """What is stored of a model: its state dict, or what its quantiser makes of that, with metadata."""
    refuse_adapters(model)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return model.state_dict(), {}
    if not quantizer.is_serializable():
        raise ValueError(f"{type(model).__name__} is quantised in a way that transformers cannot serialise")
    state, metadata = quantizer.get_state_dict_and_metadata(model)
    texts = {
        str(name): value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()
    }
    return model.state_dict() if state is None else state, texts


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


def _write_card(model: PreTrainedModel, folder: Path, repo_id: str, token: Any) -> None:
    """The repository's own card if it has one, tagged; else a new one."""
    from huggingface_hub import ModelCard, ModelCardData
    from huggingface_hub.errors import EntryNotFoundError

    try:
        card = ModelCard.load(repo_id, token=token)
    except EntryNotFoundError:
        card = ModelCard.from_template(ModelCardData(library_name="transformers"))
    tags = [*(card.data.tags or []), *(model.model_tags or []), "flashpack"]
    card.data.tags = list(dict.fromkeys(tags))
    card.save(folder / CARD_NAME)
