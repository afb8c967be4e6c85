"""Shapes and dtypes of the ops' results for torch.compile and torch.export: read off the real footer.

The path is a constant while tracing, so the file must be there then. Open models are no constants: no graph
holds what works on them. `assign` and `set_data` return nothing; what would change a shape or dtype is
refused, as the trace could not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import has_side_effect

from .index import records_of
from .native import read_index


def register() -> None:
    """Register every fake; the operator library must be loaded."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"flashpack::{name}", fake)
    for name in _EFFECTFUL:  # not to be dropped for want of results
        has_side_effect(getattr(torch.ops.flashpack, name).default)


def _records(path: str, names: Sequence[str]) -> list[tuple[tuple[int, ...], str]]:
    """(shape, torch's dtype name) of each of the named records."""
    records = {name: (shape, dtype) for name, shape, dtype in records_of(read_index(path))}
    missing = [name for name in names if name not in records]
    if missing:
        raise ValueError(f"{path}: no tensors named {missing}")
    return [records[name] for name in names]


def _load(
    path: str,
    names: Sequence[str],
    *,
    device: torch.device | None = None,
    slices: Sequence[int] | None = None,
    **_: Any,
) -> list[Tensor]:
    records = [(list(shape), dtype) for shape, dtype in _records(path, names)]
    flat = iter(slices or ())
    for tensor, dim, start, stop in zip(flat, flat, flat, flat, strict=True):
        records[tensor][0][dim] = stop - start
    return [
        torch.empty(shape, dtype=getattr(torch, dtype), device=device or "cpu") for shape, dtype in records
    ]


def _assign(path: str, names: Sequence[str], tensors: Sequence[Tensor], **_: Any) -> None:
    _refuse_meta("assign", tensors)
    records = [(shape, getattr(torch, dtype)) for shape, dtype in _records(path, names)]
    _refuse_changes("assign", tensors, records)


def _set_data(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    _refuse_meta("set_data", [*tensors, *values])
    _refuse_changes("set_data", tensors, [(value.shape, value.dtype) for value in values])


def _pack(path: str, names: Sequence[str], tensors: Sequence[Tensor], **_: Any) -> None:  # noqa: ARG001
    _refuse_meta("pack", tensors)


def _refuse_meta(op: str, tensors: Sequence[Tensor]) -> None:
    """Without this the op would silently do nothing: torch calls a fake for real meta tensors, too."""
    if any(tensor.is_meta and not isinstance(tensor, FakeTensor) for tensor in tensors):
        raise _refusal(f"flashpack::{op} needs tensors in memory, not on the meta device")


def _refuse_changes(
    op: str, tensors: Sequence[Tensor], wanted: Sequence[tuple[Sequence[int], torch.dtype]]
) -> None:
    """What is traced after the op goes by the shapes and dtypes that the tensors had before it."""
    if len(tensors) != len(wanted):
        raise _refusal(f"flashpack::{op} was given {len(tensors)} tensors for {len(wanted)} values")
    for tensor, (shape, dtype) in zip(tensors, wanted, strict=True):
        if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
            raise _refusal(
                f"flashpack::{op} cannot be traced where it changes a tensor: "
                f"{tensor.dtype} {tuple(tensor.shape)} to {dtype} {tuple(shape)}"
            )


def _refusal(message: str) -> RuntimeError:
    return RuntimeError(f'{message} [flashpack:{{"errno":null,"kind":"argument","path":null}}]')


def _last_load() -> str:
    return "null"


def _pinned(*, release: bool = False) -> list[int]:  # noqa: ARG001
    return [0, 0, 0]


_EFFECTFUL = ("assign", "set_data", "pack", "pinned")
_FAKES: dict[str, Callable[..., object]] = {
    "load": _load,
    "assign": _assign,
    "set_data": _set_data,
    "pack": _pack,
    "last_load": _last_load,
    "pinned": _pinned,
}
