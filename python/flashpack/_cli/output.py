"""What commands print: results on standard output, all else on standard error."""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click

from .._core.text import is_dumb, is_open, printable

LAYOUT = "\n\t"
_ESCAPE_CODE = re.compile(r"\x1b\[[\d;]*m")
_QUIET = "flashpack.quiet"
_GAP = "  "
_LEAST_NAME = 12  # columns of a terminal that a name keeps, however narrow it is


def _remember_quiet(context: click.Context, _: click.Parameter, quiet: bool) -> None:
    context.find_root().meta[_QUIET] = quiet


verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Show progress and, on failure, the traceback."
)
quiet_option = click.option(
    *("-q", "--quiet"),
    is_flag=True,
    expose_value=False,
    callback=_remember_quiet,
    help="Print nothing but warnings and errors.",
)
json_option = click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")


@contextmanager
def reporting_errors(verbose: bool = False, code: int = 1) -> Iterator[None]:
    """Any failure becomes one line 'Error: …' and this exit code; each warning becomes one line, too."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            yield
    except BrokenPipeError:
        raise  # click ends quietly when nobody reads on
    except click.ClickException:
        raise
    except Exception as error:  # noqa: BLE001 (the last line of defence before the user)
        if verbose:
            import traceback

            traceback.print_exc()
        fail(_told(error))
        raise SystemExit(code) from None


def _told(error: Exception) -> str:
    """What happened in a sentence, the file first; of one that is missing, which was perhaps meant."""
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return str(error)
    told = f"{error.filename}: {error.strerror}"
    return f"{told}{_hint(str(error.filename))}" if isinstance(error, FileNotFoundError) else told


def _hint(path: str) -> str:
    from .._core.names import close_match, listed

    if squeezed := re.fullmatch(r"(s3|gs|az|hf|https?):/([^/].*)", path):
        return f"; did you mean {squeezed[1]}://{squeezed[2]}?"
    folder = Path(path)
    is_folder = folder.is_dir()
    with suppress(OSError):
        names = sorted(each.name for each in (folder if is_folder else folder.parent).iterdir())
        if is_folder:
            return f"; it holds {listed(names)}" if names else "; it is empty"
        if meant := close_match(folder.name, names):
            return f"; did you mean {folder.with_name(meant)}?"
    return ""


def colour() -> bool | None:
    """Whether to colour: None leaves it to whether the stream is a terminal."""
    return False if os.environ.get("NO_COLOR") or is_dumb() else None


def tell(text: str, *, fg: str, err: bool = True) -> None:
    """One line on standard error, or output; nothing where that is closed, or cannot be written to."""
    stream = sys.stderr if err else sys.stdout
    text = _ESCAPE_CODE.sub("", text)
    if is_open(stream):
        with suppress(OSError):
            shown = printable(text, stream.encoding, keep=LAYOUT if err else "")
            click.secho(shown, fg=fg, err=err, color=colour())


def fail(text: str) -> None:
    """Say what went wrong."""
    tell(f"Error: {text}", fg="red")


def warn(message: Warning | str, *_: object, **__: object) -> None:
    """Say what may be wrong."""
    tell(f"Warning: {message}", fg="yellow")


def is_quiet() -> bool:
    """Whether the command was asked to be."""
    return bool(click.get_current_context().find_root().meta.get(_QUIET))


def succeed(message: str) -> None:
    """Say what was done, unless the command is to be quiet."""
    if not is_quiet():
        tell(f"Success: {message}", fg="green", err=False)


def show(text: str) -> None:
    """`text`, styles and all, with escapes for what standard output has no code for."""
    if sys.stdout is not None:
        click.echo(_encodable(text), color=colour())


def page(lines: Iterable[str]) -> None:
    """All lines, one screen at a time if they are more than a terminal has rows for."""
    if sys.stdout is None:
        return
    remaining = iter(lines)
    if not sys.stdout.isatty() or is_dumb():
        show("\n".join(remaining))
        return
    first = list(islice(remaining, shutil.get_terminal_size().lines - 1))
    if (more := next(remaining, None)) is None:
        show("\n".join(first))
        return
    others = (f"\n{line}" for line in chain(first[1:], [more], remaining))
    click.echo_via_pager(
        map(_encodable, chain(first[:1], others)), color=colour()
    )  # which ends the last line


def _encodable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def width() -> int | None:
    """Columns of the terminal; None for output that goes elsewhere."""
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if on_terminal else None


def table(
    heads: Sequence[str],
    columns: Sequence[Sequence[str]],
    numbers: Collection[int],
    kinds: Sequence[int] | None = None,
) -> Iterator[str]:
    """Lines of a table, the columns `numbers` flush right. A terminal that is too narrow shortens the first.

    The first column holds names, which are made printable here. There may be hundreds of thousands of rows,
    of few `kinds`: then the other columns have a cell for each kind.
    """
    names = [name if name.isprintable() else printable(name) for name in columns[0]]
    columns = [names, *columns[1:]]
    widths = [max(map(len, (head, *column))) for head, column in zip(heads, columns, strict=True)]
    if (terminal := width()) is not None:
        others = sum(widths[1:]) + len(_GAP) * (len(widths) - 1)
        widths[0] = max(min(widths[0], terminal - others), min(widths[0], _LEAST_NAME))
        names = [_shortened(name, widths[0]) for name in names]

    def field(number: int) -> str:
        if number in numbers:
            return f"%{widths[number]}s"
        return "%s" if number == len(columns) - 1 else f"%-{widths[number]}s"

    rest = _GAP.join(map(field, range(1, len(columns)))).__mod__
    line = f"{field(0)}{_GAP}%s".__mod__
    yield click.style(line((heads[0], rest(tuple(heads[1:])))), bold=True)
    ends = list(map(rest, zip(*columns[1:], strict=True)))
    yield from map(line, zip(names, ends if kinds is None else map(ends.__getitem__, kinds), strict=True))


def _shortened(text: str, size: int) -> str:
    """`text`, if it is longer without what is in its middle."""
    if len(text) <= size:
        return text
    end = size // 2
    return f"{text[: size - end - 1]}…{text[len(text) - end :]}"


def silence(verbose: bool) -> bool | None:
    """Progress shows on a terminal, with -v anywhere, with -q nowhere."""
    return False if verbose else True if is_quiet() else None


def whole(path: str) -> str:
    """`path` from the root on, a URL without its secrets."""
    from .._core.paths import is_url, shown_url

    return shown_url(path) if is_url(path) else str(Path(path).absolute())


def print_json(value: Any) -> None:
    """`value`, for programs."""
    import json

    show(json.dumps(value, indent=2))
