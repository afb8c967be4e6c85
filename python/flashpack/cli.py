"""The command line. Only what a command needs is imported, inside it: `ls` starts without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ._cli.check import sign, verify
from ._cli.convert import convert, revert
from ._cli.edit import edit_metadata, extract, merge, rename
from ._cli.look import diff, ls, metadata
from ._cli.measure import bench, explain
from ._cli.output import tell

_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the program with one line and an exit code of its own."""
    try:
        yield
    except KeyboardInterrupt:
        tell("Interrupted", fg="red")
        raise SystemExit(_INTERRUPTED) from None


class _Commands(click.Group):
    """Commands that can be interrupted at any time: click itself would end with 1."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _interruptible():
            return super().make_context(*args, **options)

    def invoke(self, context: click.Context) -> Any:
        with _interruptible():
            return super().invoke(context)


@click.group(name="flashpack", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flashpack")
def main() -> None:
    """Pack model weights into FlashPack files, and look into them."""


for command in (
    *(ls, metadata, diff, convert, revert, extract, merge, rename, edit_metadata),
    *(verify, sign, explain, bench),
):
    main.add_command(command)
