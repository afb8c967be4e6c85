"""`ls`, `metadata` and `diff`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from .._core.text import counted, printable
from .output import (
    is_quiet,
    json_option,
    page,
    print_json,
    quiet_option,
    reporting_errors,
    show,
    silence,
    verbose_option,
)

_TROUBLE = 2  # as for diff(1), where 1 says that there are differences


@contextmanager
def _without_collector() -> Iterator[None]:
    """Hundreds of thousands of lists are made, and none refers to itself: to look for those takes long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@click.command()
@click.argument("path", type=click.Path())
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("-d", "--depth", type=click.IntRange(min=1), help="Totals by this many parts of the names.")
@click.option(
    *("-s", "--sort"),
    type=click.Choice(["name", "size", "file"]),
    default="name",
    show_default=True,
    help="By name, by size (largest first), or as the tensors lie in the files.",
)
@click.option("-r", "--reverse", is_flag=True, help="Turn the order round.")
@click.option("-l", "--long", "is_long", is_flag=True, help="Show where in which file each tensor begins.")
@json_option
def ls(
    path: str,
    patterns: tuple[str, ...],
    depth: int | None,
    sort: str,
    reverse: bool,
    is_long: bool,
    as_json: bool,
) -> None:
    """List tensors: names, dtypes, shapes, sizes.

    PATH is a FlashPack or safetensors file, a folder, the index of shards, or the URL of one. A PATTERN is
    the name of a tensor or of a module, or a glob for whole names such as '*.bias': quote it for the shell.
    """
    with reporting_errors(), _without_collector():
        from .._inspect.listing import Listing
        from .listed import in_groups, one_by_one

        listing = Listing.read(path).only(patterns).ordered(sort, reverse=reverse)
        if as_json:
            print_json(listing.as_json())
        else:
            page(in_groups(listing, depth, sort, reverse) if depth else one_by_one(listing, is_long))


@click.command()
@click.argument("path", type=click.Path())
@click.option("-i", "--show-index", is_flag=True, help="Show every tensor.")
@json_option
def metadata(path: str, show_index: bool, as_json: bool) -> None:
    """Print what a file says about itself.

    A summary, then what stands in its footer.
    """
    with reporting_errors():
        from .._core.native import read_index
        from .._inspect.listing import Listing
        from .listed import describe, summary

        footer = read_index(path)
        if not show_index:
            del footer["index"]
        if as_json:
            print_json(footer)
        else:
            page([*summary(Listing.read(path), footer), "", *describe(footer)])


@click.command()
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@json_option
@quiet_option
@verbose_option
def diff(first: str, second: str, as_json: bool, verbose: bool) -> None:
    """Compare two models, value by value.

    Exit code 0 when they are the same, 1 when they differ, 2 when they could not be compared. Values are
    compared bit by bit or, where the dtypes differ, as numbers.
    """
    with reporting_errors(verbose, _TROUBLE):
        from .._inspect.compare import compare

        found = compare(first, second, silent=silence(verbose))
        if as_json:
            print_json(found)
        elif text := "\n".join(_told(found)):
            show(text)
    if _is_different(found):
        raise SystemExit(1)


def _is_different(found: dict[str, Any]) -> bool:
    """Whether the two models are not the same."""
    return any(found[key] for key in ("only_first", "only_second", "different", "metadata"))


def _told(found: dict[str, Any]) -> Iterator[str]:
    """What differs, line by line, then how much is the same; nothing if the command is to be quiet."""
    if is_quiet():
        return
    for sign, colour, key, where in (
        ("-", "red", "only_first", found["first"]),
        ("+", "green", "only_second", found["second"]),
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
