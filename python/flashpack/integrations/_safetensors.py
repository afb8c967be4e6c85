"""The rest of safetensors' calls: files as bytes, and models."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .._core.paths import StrPath
from .._files.readable import Content, Readable, readable, saved_bytes
from .._files.sources import ModelPath
from .._load.load import Device, load_file
from .._module.assign import assign_from_file
from .._save.pack import pack_to_file, save_file


def load(data: Content | Readable, *, verify: bool | None = None) -> dict[str, Tensor]:
    """The tensors of a FlashPack or safetensors file that is in memory, or in an open binary file.

    Checksums are verified unless `verify=False`. Raises as `load_file`.
    """
    return load_file(readable(data), eager=True, verify=verify)


def save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of the file that `save_file` writes."""
    return saved_bytes(lambda path: save_file(tensors, path, metadata))


def load_model(
    model: nn.Module,
    path: ModelPath,
    strict: bool = True,
    device: Device = "cpu",  # noqa: ARG001 (safetensors' signature)
) -> tuple[set[str], list[str]]:
    """Load a file into a model, which keeps its dtypes and devices; the names missing and unexpected.

    `device` is accepted and not needed: the weights go where the model is. Raises as `assign_from_file`.
    """
    result = assign_from_file(model, path, strict=strict, dtype="model")
    return set(result.missing_keys), list(result.unexpected_keys)


def save_model(
    model: nn.Module,
    path: StrPath,
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,  # noqa: ARG001 (safetensors' signature)
) -> None:
    """Write a model to a file: `pack_to_file`. Tied weights are stored once and load tied.

    `force_contiguous` is accepted and not needed: the file holds row-major tensors, whatever the strides.
    """
    pack_to_file(model, path, metadata=metadata)
