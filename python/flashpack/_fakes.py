"""Shapes and dtypes of the ops' results for torch.compile and torch.export: read off the real footer.

The path is a constant while tracing, so the file must be there then. The in-place ops return nothing; what
would change a shape or dtype is refused, as the trace could not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import has_side_effect

from . import _native
from ._footer import blocks_of, get_flashpack_file_metadata, read_index, records_of
from ._names import is_ignored_tensor_name
from ._paths import SEPARATOR


def register() -> None:
    """Register every fake; the operator library must be loaded."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"flashpack::{name}", fake)
    for name in _EFFECTFUL:  # not to be dropped for want of results
        has_side_effect(getattr(torch.ops.flashpack, name).default)


def _empty(shape: tuple[int, ...], dtype: str, device: torch.device | None) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype), device=device or "cpu")


def _footer(path: str) -> str:
    return json.dumps(get_flashpack_file_metadata(path), separators=(",", ":"), ensure_ascii=False)


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
    return [_empty(tuple(shape), dtype, device) for shape, dtype in records]


def _state_dict(
    path: str,
    *,
    ignore_names: Sequence[str] = (),
    ignore_prefixes: Sequence[str] = (),
    ignore_suffixes: Sequence[str] = (),
    device: torch.device | None = None,
    **_: Any,
) -> tuple[list[str], list[Tensor]]:
    records = [
        (name, _empty(shape, dtype, device))
        for name, shape, dtype in records_of(read_index(path))
        if not is_ignored_tensor_name(name, ignore_names, ignore_prefixes, ignore_suffixes)
    ]
    return [name for name, _ in records], [tensor for _, tensor in records]


def _blocks(path: str, *, device: torch.device | None = None, **_: Any) -> list[Tensor]:
    blocks = blocks_of(read_index(path))
    return [_empty((block.length,), block.dtype, device) for block in blocks]


def _assign(path: str, names: Sequence[str], tensors: Sequence[Tensor], **_: Any) -> None:
    _refuse_meta("assign", tensors)
    records = [(shape, getattr(torch, dtype)) for shape, dtype in _records(path, names)]
    _refuse_changes("assign", tensors, records)


def _load_into(path: str, names: Sequence[str], tensors: Sequence[Tensor], **_: Any) -> None:  # noqa: ARG001
    _refuse_meta("load_into", tensors)


def _refill(path: str, names: str, tensors: Sequence[Tensor], **_: Any) -> bool:
    distinct = len({id(tensor) for tensor in tensors}) == len(tensors)
    return distinct and _is_usual(path, names, tensors) and all(map(Tensor.is_contiguous, tensors))


def _reassign(path: str, names: str, tensors: Sequence[Tensor], **_: Any) -> bool:
    return _is_usual(path, names, tensors)


def _is_usual(path: str, names: str, tensors: Sequence[Tensor]) -> bool:
    """Whether the file holds just these names, of these shapes and dtypes, each with bytes of its own."""
    if any(map(_is_really_meta, tensors)) or len({tensor.device for tensor in tensors}) != 1:
        return False
    index = read_index(path)
    held = {name: (shape, getattr(torch, dtype)) for name, shape, dtype in records_of(index)}
    given = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors if tensor.layout == torch.strided]
    places = [(each.get("macroblock", 0), each["offset"]) for each in index["index"] if each["length"]]
    listed = names.split(SEPARATOR)
    return (
        len(listed) == len(given)
        and held == dict(zip(listed, given, strict=True))
        and len(set(places)) == len(places)
    )


def _read_payload(path: str, offsets: Sequence[int], tensors: Sequence[Tensor], **_: Any) -> None:  # noqa: ARG001
    _refuse_meta("read_payload", tensors)


def _set_data(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    _refuse_meta("set_data", [*tensors, *values])
    _refuse_changes("set_data", tensors, [(value.shape, value.dtype) for value in values])


def _pack(path: str, names: Sequence[str], tensors: Sequence[Tensor], **_: Any) -> None:  # noqa: ARG001
    _refuse_meta("pack", tensors)


def _is_really_meta(tensor: Tensor) -> bool:
    """torch calls a fake for real meta tensors, too."""
    return tensor.is_meta and not isinstance(tensor, FakeTensor)


def _refuse_meta(op: str, tensors: Sequence[Tensor]) -> None:
    """Without this the op would silently do nothing."""
    if any(map(_is_really_meta, tensors)):
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


def _verify(path: str, **_: Any) -> int:
    return int(_native.call("checkable", path=path))


def _pinned_usage() -> list[int]:
    return [0, 0, 0]


def _last_load() -> str:
    return "null"


def _release_pinned_pool() -> None:
    """Nothing that a trace could see."""


_EFFECTFUL = (
    "assign",
    "load_into",
    "refill",
    "reassign",
    "read_payload",
    "set_data",
    "pack",
    "verify",
    "release_pinned_pool",
)


_FAKES: dict[str, Callable[..., object]] = {
    "footer": _footer,
    "load": _load,
    "state_dict": _state_dict,
    "blocks": _blocks,
    "assign": _assign,
    "load_into": _load_into,
    "refill": _refill,
    "reassign": _reassign,
    "read_payload": _read_payload,
    "set_data": _set_data,
    "pack": _pack,
    "verify": _verify,
    "pinned_usage": _pinned_usage,
    "last_load": _last_load,
    "release_pinned_pool": _release_pinned_pool,
}
