"""Text out of files, made safe to show."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def printable(text: object, encoding: str | None = None, keep: str = "") -> str:
    """`text` with all that is not printable, or that `encoding` cannot say, as escapes, but for `keep`.

    So no file can send control sequences to a terminal.
    """
    escaped = "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode()
        for character in str(text)
    )
    encoding = encoding or "utf-8"
    return escaped.encode(encoding, "backslashreplace").decode(encoding)


def is_open(stream: TextIO | None) -> bool:
    """Whether anything can be written to a standard stream: there may be none, or a closed one."""
    if stream is None or stream.closed:
        return False
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):  # one in memory
        return True
    with suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


def say(text: str) -> None:
    """Print `text` on standard output if that takes it. Raises nothing: the work is done, whoever hears."""
    if is_open(sys.stdout):
        # Where not all text can be said, ASCII alone: programs that read it take it for UTF-8 nevertheless.
        unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
        with suppress(OSError, ValueError):
            print(printable(text, "utf-8" if unicode else "ascii", keep="\n"), flush=True)
