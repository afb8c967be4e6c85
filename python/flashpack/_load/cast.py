"""Other dtypes than the file's: floating tensors are cast while they are loaded, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from .._core.dtypes import is_castable, string_to_dtype
from .._core.index import blocks_of
from .._core.progress import Silent
from .._core.tensors import shown_memory

# "file": as it is there. "model": as the model's tensor has it. Else that of all floating tensors.
DtypeLike: TypeAlias = torch.dtype | str
Dtype: TypeAlias = torch.dtype | Literal["file", "model"]

# Of tensors that are cast, no more than this is held in both dtypes at once, a single one aside.
GROUP_BYTES = 256 << 20


def requested_dtype(dtype: DtypeLike) -> Dtype:
    """ "file", "model" or the dtype that `dtype` names. Raises ValueError for what is no floating dtype."""
    if dtype == "file":
        return "file"
    if dtype == "model":
        return "model"
    named = string_to_dtype(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not is_castable(named):
        raise ValueError(f'dtype must be "file", "model" or a floating torch.dtype, not {dtype!r}')
    return named


def duplicate(tensors: Sequence[Tensor], copy: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """A copy of every tensor by `copy`, made once for each distinct range of memory."""
    copies: dict[Hashable, Tensor] = {}
    result = []
    for tensor in tensors:
        key = shown_memory(tensor)
        if key not in copies:
            copies[key] = copy(tensor)
        result.append(copies[key].view(tensor.shape))
    return result


def cast(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Those of `tensors` that `dtypes` names, each of its dtype; those of one dtype stay tied."""
    result = {name: tensors[name] for name in dtypes}
    # What is made in inference mode could never be trained.
    with torch.inference_mode(False), torch.no_grad():
        for dtype in set(dtypes.values()):
            names = [name for name, tensor in result.items() if dtypes[name] == dtype != tensor.dtype]
            made = duplicate([tensors[name] for name in names], lambda tensor: tensor.to(dtype))  # noqa: B023
            result.update(zip(names, made, strict=True))
    return result


def load_cast(
    load: Callable[[list[str], Silent], Mapping[str, Tensor]],
    footer: Mapping[str, Any],
    dtypes: Mapping[str, torch.dtype],
    silent: Silent,
) -> dict[str, Tensor]:
    """The tensors that `dtypes` names, by `load`, each of its dtype.

    Those that are cast are loaded and cast some at a time: never is all of them held in both dtypes.
    """
    loaded: dict[str, Tensor] = {}
    for part in cast_parts(load, footer, dtypes, silent):
        loaded.update(part)
    return {name: loaded[name] for name in dtypes}


def cast_parts(
    load: Callable[[list[str], Silent], Mapping[str, Tensor]],
    footer: Mapping[str, Any],
    dtypes: Mapping[str, torch.dtype],
    silent: Silent,
) -> Iterator[dict[str, Tensor]]:
    """`load_cast`, each part as it is there."""
    groups = list(_groups(footer, dtypes))
    whole, done = sum(size for _, size in groups), 0
    for names, size in groups:
        yield cast(load(names, part_of(silent, done, size, whole)), {name: dtypes[name] for name in names})
        done += size


def part_of(silent: Silent, before: int, size: int, whole: int) -> Silent:
    """`silent` for a load of `size` bytes of the `whole`, of which those `before` are loaded."""
    if not callable(silent):
        return silent
    told = silent

    def tell(done: int, of: int) -> None:
        told(before + (size * done // of if of else size), whole)

    return tell


def _groups(footer: Mapping[str, Any], dtypes: Mapping[str, torch.dtype]) -> Iterator[tuple[list[str], int]]:
    """Names to be loaded together, and their bytes in the file: first all that keep their dtype."""
    blocks = [getattr(torch, block.dtype) for block in blocks_of(dict(footer))]
    kept: list[str] = []
    kept_bytes = 0
    cast_later: list[tuple[tuple[int, int], int, str]] = []
    for record in footer["index"]:
        name, number = record["name"], record.get("macroblock", 0)
        if name not in dtypes:
            continue
        size = record["length"] * blocks[number].itemsize
        if blocks[number] == dtypes[name]:
            kept.append(name)
            kept_bytes += size
        else:
            cast_later.append(((number, record["offset"]), size, name))
    if kept:
        yield kept, kept_bytes
    sizes: dict[str, int] = {}
    last = None
    for place, size, name in sorted(cast_later):
        sizes[name] = 0 if place == last else size  # those of one place are tied, and come in one group
        last = place
    yield from in_groups(sizes.items(), GROUP_BYTES)


def in_groups(sizes: Iterable[tuple[str, int]], most: int) -> Iterator[tuple[list[str], int]]:
    """Names in groups of `most` bytes, or of one that is larger; those of no bytes follow the one before."""
    names: list[str] = []
    held = 0
    for name, size in sizes:
        if names and size and held + size > most:
            yield names, held
            names, held = [], 0
        names.append(name)
        held += size
    if names:
        yield names, held
