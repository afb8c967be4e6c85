"""The rest of safetensors' calls: files as bytes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ._bytes import Content, Readable, readable, saved_bytes
from ._load import load_file
from ._save import save_file


def load(data: Content | Readable, *, verify: bool | None = None) -> dict[str, Tensor]:
    """The tensors of a FlashPack or safetensors file that is in memory, or in an open binary file.

    Checksums are verified unless `verify=False`. Raises as `load_file`.
    """
    return load_file(readable(data), eager=True, verify=verify)


def save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of the file that `save_file` writes."""
    return saved_bytes(lambda path: save_file(tensors, path, metadata))
