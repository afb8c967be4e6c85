"""Which tensor names an operation leaves out: one rule, shared by loading, iterating and converting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def is_ignored_tensor_name(
    name: str,
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
) -> bool:
    """True when `name` is listed, starts with a listed prefix or ends with a listed suffix."""
    return (
        name in (ignore_names or ())
        or name.startswith(tuple(ignore_prefixes or ()))
        or name.endswith(tuple(ignore_suffixes or ()))
    )


def filter_state_dict(
    state_dict: Mapping[str, T],
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
) -> dict[str, T]:
    """The entries of `state_dict` whose names are not ignored, in its order."""
    return {
        name: value
        for name, value in state_dict.items()
        if not is_ignored_tensor_name(name, ignore_names, ignore_prefixes, ignore_suffixes)
    }


def name_tuple(option: str, names: Iterable[str] | None) -> tuple[str, ...]:
    """`names` as a tuple. Raises ValueError for a lone string, whose letters would be taken as names."""
    if isinstance(names, str):
        raise ValueError(f"{option} must be a list of strings, not the string {names!r}")
    result = tuple(names or ())
    for name in result:
        if not isinstance(name, str):
            raise ValueError(f"{option} must hold strings, not {type(name).__name__}")
        if not is_utf8(name):
            raise ValueError(f"{option} must hold UTF-8 text, not {name!r}")
    return result


def is_utf8(text: str) -> bool:
    """Whether `text` can be encoded: False for lone surrogates, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
