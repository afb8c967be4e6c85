"""`explain`."""

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
    """Print what a load of the file would do, and what limits it, without loading."""
    with reporting_errors(verbose):
        from .._inspect.explain import explain

        show(printable(explain(path, device, eager=eager), keep=LAYOUT))
