"""Parts of tensors, as callers write them: (dim, start, stop), or an index. Needs no torch."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias


class Cut(NamedTuple):
    """Indices `start` to `stop` of dimension `dim`."""

    dim: int
    start: int
    stop: int


Cuts: TypeAlias = Sequence[Cut]
SliceLike: TypeAlias = tuple[int, int, int] | Sequence[tuple[int, int, int]]


def parse_slices(slices: Mapping[str, SliceLike] | None) -> dict[str, list[Cut]]:
    """The parts that `load_file` is asked for. Raises ValueError for what is no (dim, start, stop)."""
    parsed = {}
    for name, given in (slices or {}).items():
        several = given if _is_list_of_lists(given) else [given]
        parsed[name] = [_cut(name, one) for one in several]
    return parsed


def _is_list_of_lists(given: Any) -> bool:
    return isinstance(given, Sequence) and all(isinstance(one, Sequence) for one in given)


def _cut(name: str, given: Any) -> Cut:
    try:
        dim, start, stop = (operator.index(number) for number in given)
    except (TypeError, ValueError):
        raise ValueError(f"the slice of {name!r} is {given!r}, expected (dim, start, stop)") from None
    if min(dim, start, stop) < 0:
        raise ValueError(f"the slice of {name!r} is {given!r}: its numbers must not be negative")
    return Cut(dim, start, stop)


class Part(NamedTuple):
    """What an index selects: `cuts` of dimensions; of the result, the `dropped` dimensions of size 1."""

    cuts: list[Cut]
    dropped: list[int]


def part_of(shape: Sequence[int], index: Any) -> Part | None:
    """What `index` selects of a tensor of `shape`, if it is integers, slices with steps of 1 and `...`.

    None for every other index. Raises IndexError for an integer out of bounds and for too many indices.
    """
    parts = _per_dimension(len(shape), index)
    if parts is None:
        return None
    cuts, dropped = [], []
    for dim, (size, one) in enumerate(zip(shape, parts, strict=True)):
        if isinstance(one, slice):
            start, stop, step = one.indices(size)
            if step != 1:
                return None
            cut = Cut(dim, start, max(start, stop))
        else:
            if not -size <= one < size:
                raise IndexError(f"index {one} is out of bounds for dimension {dim} with size {size}")
            cut = Cut(dim, one % size, one % size + 1)
            dropped.append(dim)
        if (cut.start, cut.stop) != (0, size):
            cuts.append(cut)
    return Part(cuts, dropped)


def _per_dimension(dims: int, index: Any) -> list[int | slice] | None:
    """One integer or slice for each dimension; None for an index of another kind."""
    given = list(index) if isinstance(index, tuple) else [index]
    ellipses = [place for place, part in enumerate(given) if part is Ellipsis]
    place = ellipses[0] if ellipses else len(given)
    parts = [part if isinstance(part, slice) else _integer(part) for part in given if part is not Ellipsis]
    known = [part for part in parts if part is not None]
    if len(ellipses) > 1 or len(known) < len(parts):
        return None
    missing = dims - len(known)
    if missing < 0:
        raise IndexError(f"too many indices for a tensor of {dims} dimensions: {len(known)}")
    return [*known[:place], *[slice(None)] * missing, *known[place:]]


def _integer(value: Any) -> int | None:
    """`value` as an integer; None if it is none. A bool is a mask."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
