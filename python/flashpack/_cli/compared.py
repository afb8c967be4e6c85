"""A comparison as lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from .._core.text import counted, printable
from .output import is_quiet


def is_different(found: dict[str, Any]) -> bool:
    """Whether the two models are not the same."""
    return any(found[key] for key in ("only_first", "only_second", "different", "metadata"))


def told(found: dict[str, Any], first: str, second: str) -> Iterator[str]:
    """What differs, line by line, then how much is the same; nothing if the command is to be quiet."""
    if is_quiet():
        return
    for sign, colour, key, where in (
        ("-", "red", "only_first", first),
        ("+", "green", "only_second", second),
    ):
        for name in found[key]:
            yield click.style(f"{sign} {printable(name)}: only in {printable(where)}", fg=colour)
    for tensor in found["different"]:
        yield click.style(f"~ {printable(tensor['name'])}: {_difference(tensor)}", fg="yellow")
    for key in found["metadata"]:
        yield click.style(f"~ metadata {printable(key)!r} differs", fg="yellow")
    equal = found["equal"]
    yield f"{counted(equal, 'tensor')} {'is' if equal == 1 else 'are'} the same in both"


def _difference(tensor: dict[str, Any]) -> str:
    parts = []
    if tensor["dtypes"][0] != tensor["dtypes"][1]:
        parts.append("{} and {}".format(*tensor["dtypes"]))
    if tensor["shapes"][0] != tensor["shapes"][1]:
        parts.append("shapes {} and {}".format(*tensor["shapes"]))
    elif (values := tensor["values"]) is None:
        parts.append("values not compared")
    else:
        parts.append(_values(values))
    return "; ".join(parts)


def _values(values: dict[str, Any]) -> str:
    if not values["different"] and not values["unbounded"]:
        return "the same values"
    text = f"{values['different']} of {values['elements']} values differ"
    if values["largest"] is not None and values["different"] > values["unbounded"]:
        text += f", by up to {values['largest']:.3g}"
    if values["unbounded"]:
        text += f"; {values['unbounded']} are NaN or infinite in one of the two"
    return text
