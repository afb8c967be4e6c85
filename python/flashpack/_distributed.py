"""Loads by several processes: single-process for now, refused with a clear error otherwise."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from ._load import Device
from ._paths import StrPath
from ._storage import FlashTensorStorage, read_flashpack_file
from .constants import DEFAULT_CHUNK_BYTES, DEFAULT_NUM_STREAMS


def require_single_process(world_size: int | None = None) -> None:
    """Raise NotImplementedError when more than one rank would take part in a distributed load."""
    ranks = _world_size() if world_size is None else world_size
    if ranks > 1:
        raise NotImplementedError(
            f"distributed loading over {ranks} ranks is not implemented yet; "
            "load without use_distributed_loading, each rank reads the file itself"
        )


def _world_size() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    text = os.environ.get("WORLD_SIZE", "1")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"WORLD_SIZE must be a whole number, not {text!r}") from None


def read_flashpack_file_distributed(
    path: StrPath,
    device: Device = "cuda",
    src: int = 0,  # noqa: ARG001 (0.4.5's signature)
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    num_streams: int = DEFAULT_NUM_STREAMS,
    silent: bool | None = True,
    metadata: dict[str, Any] | None = None,
    sharded: bool = False,  # noqa: ARG001 (0.4.5's signature)
    shard_strategy: str | None = None,  # noqa: ARG001 (0.4.5's signature)
) -> tuple[FlashTensorStorage, dict[str, Any]]:
    """`read_flashpack_file` on every rank; with one rank there is nothing to share out.

    Raises NotImplementedError with more than one rank.
    """
    require_single_process()
    return read_flashpack_file(path, device, chunk_bytes, num_streams, silent, metadata)
