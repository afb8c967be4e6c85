"""Shapes and dtypes of the ops' results for torch.compile and torch.export: read off the real footer.

The path is a constant while tracing, so the file must be there then. The in-place ops have nothing to
tell: they return nothing and leave shapes as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import has_side_effect

from ._footer import blocks_of, get_flashpack_file_metadata, records_of
from ._names import is_ignored_tensor_name


def register() -> None:
    """Register every fake; the operator library must be loaded."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"flashpack::{name}", fake)
    for name in ("assign", "set_data", "pack", "verify"):  # not to be dropped for want of results
        has_side_effect(getattr(torch.ops.flashpack, name).default)


def _empty(shape: tuple[int, ...], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype))


def _footer(path: str) -> str:
    return json.dumps(get_flashpack_file_metadata(path), separators=(",", ":"), ensure_ascii=False)


def _load(path: str, names: Sequence[str], **_: Any) -> list[Tensor]:
    records = {name: (shape, dtype) for name, shape, dtype in records_of(get_flashpack_file_metadata(path))}
    missing = [name for name in names if name not in records]
    if missing:
        raise ValueError(f"{path}: no tensors named {missing}")
    return [_empty(*records[name]) for name in names]


def _state_dict(
    path: str,
    *,
    ignore_names: Sequence[str] = (),
    ignore_prefixes: Sequence[str] = (),
    ignore_suffixes: Sequence[str] = (),
    **_: Any,
) -> tuple[list[str], list[Tensor]]:
    records = [
        (name, _empty(shape, dtype))
        for name, shape, dtype in records_of(get_flashpack_file_metadata(path))
        if not is_ignored_tensor_name(name, ignore_names, ignore_prefixes, ignore_suffixes)
    ]
    return [name for name, _ in records], [tensor for _, tensor in records]


def _blocks(path: str, **_: Any) -> list[Tensor]:
    return [_empty((block.length,), block.dtype) for block in blocks_of(get_flashpack_file_metadata(path))]


def _assign(path: str, names: Sequence[str], tensors: Sequence[Tensor], **_: Any) -> None:  # noqa: ARG001
    _refuse_meta("assign", tensors)


def _set_data(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    _refuse_meta("set_data", [*tensors, *values])


def _pack(path: str, names: Sequence[str], tensors: Sequence[Tensor], **_: Any) -> None:  # noqa: ARG001
    _refuse_meta("pack", tensors)


def _refuse_meta(op: str, tensors: Sequence[Tensor]) -> None:
    """torch calls a fake for real meta tensors, too: without this the op would silently do nothing."""
    if any(tensor.is_meta and not isinstance(tensor, FakeTensor) for tensor in tensors):
        raise RuntimeError(
            f"flashpack::{op} needs tensors in memory, not on the meta device "
            '[flashpack:{"errno":null,"kind":"argument","path":null}]'
        )


def _verify(path: str, **_: Any) -> int:
    last = max(blocks_of(get_flashpack_file_metadata(path)), key=lambda block: block.offset_bytes)
    return last.offset_bytes + last.length * int(getattr(torch, last.dtype).itemsize)


_FAKES: dict[str, Callable[..., object]] = {
    "footer": _footer,
    "load": _load,
    "state_dict": _state_dict,
    "blocks": _blocks,
    "assign": _assign,
    "set_data": _set_data,
    "pack": _pack,
    "verify": _verify,
}
