"""Saving training checkpoints."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._core.constants import CHECKPOINT_KEY
from .._core.paths import StrPath
from .._files.plain import to_json
from .pack import pack_to_file


def save_checkpoint(
    state: Any,
    path: StrPath,
    *,
    checksum: str | None = None,
    max_shard_size: int | str | None = None,
    compress: str | None = None,
) -> None:
    """Write a training state: nested dicts, lists and tuples of tensors and plain values.

    Tensors are stored as in any other file, under names made of the keys that lead to them
    ("optimizer.state.0.exp_avg"); those that are the same memory are stored once and load tied, others that
    overlap are stored apart. Parameters load as tensors. Plain are numbers, strings, bools, None, and torch's
    dtypes, devices and sizes; they, and the structure, become JSON in the file's metadata. `load_checkpoint`
    gives the same back, with the same types.

    `checksum`, `max_shard_size` and `compress` as in `pack_to_file`.

    Raises ValueError that says where the state holds anything else (arrays, bytes, objects), and what
    `pack_to_file` raises; nothing is written then.
    """
    tensors: dict[str, Tensor] = {}
    text = to_json(state, "state", tensors)
    if not tensors:
        raise ValueError("state holds no tensor: a FlashPack file needs one")
    pack_to_file(
        tensors,
        path,
        metadata={CHECKPOINT_KEY: text},
        checksum=checksum,
        max_shard_size=max_shard_size,
        compress=compress,
    )
