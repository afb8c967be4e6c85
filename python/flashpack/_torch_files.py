"""State dicts out of torch's own files, and out of safetensors where the native side has no cast."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._errors import FlashPackError
from ._sources import Sources, check_promises, refuse_broken_promises


def read_state_dict(sources: Sources) -> dict[str, Tensor]:
    """The tensors of all files, mapped rather than read wherever the format allows.

    Raises ValueError for a file that is no state dict, that needs pickled code, or repeats a name.
    """
    if sources.are_safetensors:
        check_promises(sources)
    read = _read_safetensors if sources.are_safetensors else _read_torch
    parts = {file.name: read(file) for file in sources.files}
    refuse_broken_promises(sources, {shard: set(part) for shard, part in parts.items()})
    return _merge(parts)


def read_metadata(sources: Sources) -> dict[str, str]:
    """The strings that safetensors files hold beside their tensors; torch's files have none."""
    metadata: dict[str, str] = {}
    if sources.are_safetensors:
        for path in sources.files:
            with _open_safetensors(path) as file:
                metadata.update(file.metadata() or {})
    return metadata


def _merge(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for shard, part in parts.items():
        repeated = merged.keys() & part.keys()
        if repeated:
            raise ValueError(f"{shard}: tensors that an earlier shard holds too: {sorted(repeated)}")
        merged.update(part)
    return merged


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise FlashPackError(f"{path}: is not a sound safetensors file: {error}") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    mapped = zipfile.is_zipfile(path)  # torch's older format cannot be mapped
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damage can make the unpickler fail in any way
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: torch.load(weights_only=True) refuses the file: {reason}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict")
    for name in content:
        if not isinstance(name, str):
            raise ValueError(f"{path}: not a state dict: tensor names must be strings, not {name!r}")
    return dict(content)
