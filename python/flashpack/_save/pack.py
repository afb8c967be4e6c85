"""Packing a model or a state dict: check every tensor, then one native call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._core import ops
from .._core.constants import DEFAULT_ALIGN_BYTES, DEFAULT_NUM_WRITE_WORKERS
from .._core.dtypes import is_castable
from .._core.names import is_utf8
from .._core.paths import StrPath, text_path
from .._core.progress import run
from .._core.tensors import hooks_of, packable
from .._core.text import parse_size
from .._files.sources import watched_size


def pack_to_file(
    state_dict_or_model: Mapping[str, Tensor] | nn.Module,
    destination_path: StrPath,
    target_dtype: torch.dtype | None = None,
    name_order: Iterable[str] | None = None,
    align_bytes: int = DEFAULT_ALIGN_BYTES,
    silent: bool | None = True,
    num_workers: int = DEFAULT_NUM_WRITE_WORKERS,  # noqa: ARG001 (0.4.5's signature)
    *,
    metadata: Mapping[str, str] | None = None,
    checksum: str | None = None,
    max_shard_size: int | str | None = None,
    compress: str | None = None,
) -> None:
    """Write a model's state dict, or a dict of tensors, to a FlashPack file.

    The file appears whole or not at all; an old one stays until then. `target_dtype` casts floating
    tensors only. `name_order` selects and orders (unknown names are dropped); without it the largest
    come first. `align_bytes` aligns every tensor's start, 0 packs densely. Tensors that are the same
    memory (tied weights) are stored once and load tied. `metadata` is kept as text beside the tensors.
    `num_workers` is accepted and not needed.

    `checksum` names the digest function: "xxh3_64" (the default: finds accidents, at the speed of memory), or
    "blake3", with which `checksums.footer` of the footer is a cryptographic root of everything in the file.
    `max_shard_size`, in bytes or as "5GB", makes several files of it when one would be larger: of
    model.flashpack model-00001-of-00002.flashpack and so on, with model.flashpack.index.json. They load by
    the name they were saved under, replace what was saved under it, and appear once all are written.

    `compress` makes the file smaller without losing a bit: "fast" takes 0.70 of the bytes of bfloat16
    and is decoded faster than most storage reads, "small" takes 0.67 and three times as long to decode.
    Such files cannot be mapped, and need flashpack 0.5.

    Raises ValueError for an empty state dict, for what is not a plain tensor with data (extra state,
    None, sparse, quantized, nested, meta… named with the reason) and for unsuitable options; OSError when
    the file cannot be written.
    """
    state = _state_of(state_dict_or_model)
    names = [name for name in dict.fromkeys(state if name_order is None else name_order) if name in state]
    if not names:
        raise ValueError("No tensors to pack.")
    _check_options(target_dtype, align_bytes)
    tensors = {name: packable(name, state[name]) for name in names}
    path = text_path(destination_path)
    options: dict[str, Any] = {
        "dtype": target_dtype,
        "align_bytes": align_bytes,
        "keep_order": name_order is not None,
        "metadata": _checked_metadata(metadata or {}),
        "checksum": checksum,
        "max_shard_bytes": None if max_shard_size is None else parse_size(max_shard_size),
        "compress": compress,
    }
    run(
        lambda counter: ops.pack(path, tensors, counter=counter, **options),
        label="Packing",
        size=watched_size(sum(tensor.nbytes for tensor in tensors.values()), path),
        silent=silent,
        # Another thread does not see this thread's current CUDA stream, which may still be computing.
        here=any(tensor.device.type != "cpu" for tensor in tensors.values()),
    )


def save_file(
    tensors: Mapping[str, Tensor],
    path: StrPath,
    metadata: Mapping[str, str] | None = None,
    *,
    checksum: str | None = None,
    max_shard_size: int | str | None = None,
    compress: str | None = None,
) -> None:
    """Write a dict of tensors, with optional {str: str} metadata; the counterpart of `load_file`.

    `checksum`, `max_shard_size` and `compress` as in `pack_to_file`.
    """
    pack_to_file(
        tensors, path, metadata=metadata, checksum=checksum, max_shard_size=max_shard_size, compress=compress
    )


def _state_of(source: Mapping[str, Tensor] | nn.Module) -> Mapping[str, Any]:
    if isinstance(source, nn.Module):
        return whole_state_dict(source)
    if isinstance(source, Mapping):
        return source
    hint = ": the tensors come first, then the path" if isinstance(source, str | os.PathLike) else ""
    given = "a class: call it for a module" if isinstance(source, type) else f"{type(source).__name__}{hint}"
    raise TypeError(f"expected a torch.nn.Module or a dict of tensors, not {given}")


def _check_options(dtype: torch.dtype | None, align_bytes: int) -> None:
    if abs(align_bytes) >= 1 << 63:
        raise ValueError(f"align_bytes must be below 2^63, not {align_bytes}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and is_castable(dtype)):
        raise ValueError(f"Unsupported dtype: target_dtype must be a floating torch.dtype, not {dtype}")


def _checked_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(
                f"metadata must map str to str: {key!r} maps to {value!r}; take str() or json.dumps() of it"
            )
        if not is_utf8(key) or not is_utf8(value):
            raise ValueError(f"metadata must be UTF-8 text: {key!r} maps to {value!r}")
    return metadata


def whole_state_dict(module: nn.Module) -> Mapping[str, Any]:
    """`module.state_dict()`, in which offloaded tensors are what the hooks would put in their place.

    Tensors on the meta device that no hook holds stay there. Reads what is offloaded to disk into memory.
    """
    state: dict[str, Any] = module.state_dict()
    offloaded = [name for name, value in state.items() if isinstance(value, Tensor) and value.is_meta]
    if not offloaded:
        return state
    own = module.state_dict(keep_vars=True)
    held: dict[int, Tensor] = {}  # by the tensor that stands for it: of tied names, hooks may hold one alone
    for name in offloaded:
        value = None if id(own[name]) in held else _held_by_hooks(module, name)
        if value is not None:
            held[id(own[name])] = value.to(own[name].dtype)
    return {**state, **{name: held[id(own[name])] for name in offloaded if id(own[name]) in held}}


def _held_by_hooks(module: nn.Module, name: str) -> Tensor | None:
    parts = name.split(".")
    for depth in reversed(range(len(parts))):
        for hook in hooks_of(module.get_submodule(".".join(parts[:depth]))):
            weights = getattr(hook, "weights_map", None) or {}
            try:
                value: Tensor = weights[".".join(parts[depth:])]
            except KeyError:
                continue
            return value
    return None
