"""`extract`, `merge`, `rename` and `edit-metadata`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .._core.text import counted, parse_size
from .output import quiet_option, reporting_errors, silence, succeed, verbose_option, whole

if TYPE_CHECKING:
    from .._convert.repack import Output

_output_option = click.option(
    "-o", "--output", type=click.Path(), help="Write a new file instead of replacing PATH."
)


def _written(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of all commands that write files."""
    shards = click.option("--max-shard-size", help="Write several files, none larger than this, such as 5GB.")
    checksum = click.option("--checksum", help="Checksum algorithm: xxh3_64 or blake3; default: as before.")
    return shards(checksum(quiet_option(verbose_option(command))))


def _output(max_shard_size: str | None, checksum: str | None, verbose: bool) -> Output:
    from .._convert.repack import Output

    shard_bytes = None if max_shard_size is None else parse_size(max_shard_size)
    return Output(checksum=checksum, shard_bytes=shard_bytes, silent=silence(verbose))


@click.command()
@click.argument("path", type=click.Path())
@click.argument("destination", type=click.Path())
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@_written
def extract(path: str, destination: str, patterns: tuple[str, ...], verbose: bool, **options: Any) -> None:
    """Write some tensors to a file of their own.

    A PATTERN is the name of a tensor or of a module, or a glob for whole names such as '*.bias'.
    """
    with reporting_errors(verbose):
        from .._convert.repack import extract

        made = extract(path, destination, patterns, _output(verbose=verbose, **options))
        succeed(f"Saved to {whole(made)}")


@click.command()
@click.argument("paths", type=click.Path(), nargs=-1, required=True, metavar="PATH...")
@click.argument("destination", type=click.Path())
@_written
def merge(paths: tuple[str, ...], destination: str, verbose: bool, **options: Any) -> None:
    """Write the tensors of several models to one file.

    The last argument is the new file.
    """
    with reporting_errors(verbose):
        from .._convert.repack import merge

        made = merge(paths, destination, _output(verbose=verbose, **options))
        succeed(f"Saved to {whole(made)}")


@click.command()
@click.argument("path", type=click.Path())
@click.argument("pairs", nargs=-1, required=True, metavar="OLD NEW [OLD NEW]...")
@_output_option
@_written
def rename(path: str, pairs: tuple[str, ...], output: str | None, verbose: bool, **options: Any) -> None:
    """Rename tensors and modules.

    OLD is a name, or a pattern whose * and ? stand in NEW for what they fit. 'model.*' '*' takes a prefix
    away, '*' 'model.*' puts one before every name. The file is replaced in one step unless --output names
    a new one.
    """
    with reporting_errors(verbose):
        from .._convert.repack import rename

        if len(pairs) % 2:
            raise ValueError(f"names come in pairs, old and new, and {pairs[-1]!r} has no other")
        both = list(zip(pairs[::2], pairs[1::2], strict=True))
        made, renamed = rename(path, both, output, _output(verbose=verbose, **options))
        succeed(f"Saved to {whole(made)}, {counted(renamed, 'tensor')} renamed")


@click.command("edit-metadata")
@click.argument("path", type=click.Path())
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Set a value (repeatable).")
@click.option("--remove", "removed", multiple=True, metavar="KEY", help="Remove a key (repeatable).")
@_output_option
@_written
def edit_metadata(
    path: str,
    changes: tuple[str, ...],
    removed: tuple[str, ...],
    output: str | None,
    verbose: bool,
    **options: Any,
) -> None:
    """Set or remove strings of a file's metadata.

    The file is replaced in one step unless --output names a new one.
    """
    with reporting_errors(verbose):
        from .._convert.repack import edit_metadata

        if not changes and not removed:
            raise ValueError("nothing to edit: give --set KEY=VALUE or --remove KEY")
        if wrong := [change for change in changes if not change.partition("=")[0] or "=" not in change]:
            raise ValueError(f"--set takes KEY=VALUE, not {wrong[0]!r}")
        values = dict(change.split("=", 1) for change in changes)
        made = edit_metadata(path, values, removed, output, _output(verbose=verbose, **options))
        succeed(f"Saved to {whole(made)}")
