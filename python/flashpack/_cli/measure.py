"""`explain` and `bench`."""

from __future__ import annotations

import click

from .._core.text import printable
from .output import LAYOUT, reporting_errors, show, verbose_option


@click.command()
@click.argument("path", type=click.Path())
@click.option("--device", default="cpu", show_default=True, help="Where the tensors would go.")
@click.option("--eager", is_flag=True, default=None, help="Read into memory instead of mapping the file.")
@verbose_option
def explain(path: str, device: str, eager: bool | None, verbose: bool) -> None:
    """Print what a load would do, and what limits it.

    Nothing is loaded; a sample of the file is read to time it.
    """
    with reporting_errors(verbose):
        from .._inspect.explain import explain

        show(printable(explain(path, device, eager=eager), keep=LAYOUT))


@click.command()
@click.argument("path", type=click.Path())
@click.option("--device", help="Load to this device, too, such as cuda:0.")
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Medians of so many."
)
@click.option("--cold", is_flag=True, help="Drop the file from the page cache before every measurement.")
@click.option(
    "--plot", type=click.Path(), help="Draw rates, and a load by thread, to a file such as out.png."
)
@verbose_option
def bench(path: str, device: str | None, rounds: int, cold: bool, plot: str | None, verbose: bool) -> None:
    """Measure loads beside what this machine can do.

    PATH is a FlashPack or safetensors file, a folder, the index of shards, or the URL of a file.
    """
    with reporting_errors(verbose):
        from ..bench import bench

        for line in bench(path, device, rounds, cold, plot):
            show(printable(line, keep=LAYOUT))
