"""Parts of tensors, as callers write them: (dim, start, stop), or an index. Needs no torch."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
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


def part_of(shape: Sequence[int], index: Any) -> Part:
    """What `index` selects of a tensor of `shape`, by the rules of numpy's basic indexing with steps of 1.

    Raises IndexError for what lies outside of the shape or is no such index, ValueError for other steps.
    """
    cuts, dropped = [], []
    for dim, (size, one) in enumerate(zip(shape, _per_dimension(len(shape), index), strict=True)):
        if isinstance(one, slice):
            start, stop, step = one.indices(size)
            if step != 1:
                raise ValueError(f"a slice with step {step}: only steps of 1 are read from the file")
            cut = Cut(dim, start, max(start, stop))
        else:
            at = _integer(one)
            if not -size <= at < size:
                raise IndexError(f"index {at} is out of bounds for dimension {dim} with size {size}")
            cut = Cut(dim, at % size, at % size + 1)
            dropped.append(dim)
        if (cut.start, cut.stop) != (0, size):
            cuts.append(cut)
    return Part(cuts, dropped)


def _per_dimension(dims: int, index: Any) -> list[Any]:
    """One integer or slice for each dimension."""
    parts = list(index) if isinstance(index, tuple) else [index]
    ellipses = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(ellipses) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    missing = dims - (len(parts) - len(ellipses))
    if missing < 0:
        raise IndexError(f"too many indices for a tensor of {dims} dimensions: {len(parts) - len(ellipses)}")
    place = ellipses[0] if ellipses else len(parts)
    return [*parts[:place], *_whole(missing), *parts[place + 1 :]]


def _whole(count: int) -> Iterable[slice]:
    return [slice(None)] * count


def _integer(value: Any) -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise IndexError(
        f"only integers, slices and '...' are read from the file, not {type(value).__name__}: "
        "index the whole tensor (get_tensor) with others"
    )
