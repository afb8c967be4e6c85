"""Text for people: made safe to show, counts, sizes, rates and durations."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import TextIO

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?|)B", re.ASCII)


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


def is_dumb() -> bool:
    """Whether the terminal can only print lines, as TERM tells."""
    return os.environ.get("TERM") in ("dumb", "emacs")


def say(text: str) -> None:
    """Print `text` on standard output if that takes it. Raises nothing: the work is done, whoever hears."""
    if is_open(sys.stdout):
        # Where not all text can be said, ASCII alone: programs that read it take it for UTF-8 nevertheless.
        unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
        with suppress(OSError, ValueError):
            print(printable(text, "utf-8" if unicode else "ascii", keep="\n"), flush=True)


def size_text(count: float) -> str:
    """A number of bytes such as 512 B, 8.39 MB, 3.00 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def rate_text(count: float, seconds: float) -> str:
    """Bytes per second, such as 14.10 GB/s."""
    return f"{size_text(count / seconds)}/s" if seconds > 0 else "no time"


def human_num_elements(elements: int) -> str:
    """A count such as 1.50K, 2.30M, 7.00B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if elements > size:
            return f"{elements / size:.2f}{unit}"
    return str(elements)


def human_duration(seconds: float) -> str:
    """A duration such as 3.10µs, 42.00ms, 5.20s, 2m5s, 1h2m3s."""
    if seconds < 60:
        for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if seconds >= size:
                return f"{seconds / size:.2f}{unit}"
        return f"{seconds / 1e-9:.2f}ns"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{left}s" if hours else f"{minutes}m{left}s"


def counted(count: int, noun: str) -> str:
    """So many of what `noun` is, such as "1 tensor" and "2 tensors"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def parse_size(size: int | str) -> int:
    """`size` in bytes: a number, or text as in "5GB" (10^9) and "500 MiB" (2^20). Raises ValueError."""
    parsed = size
    if isinstance(size, str):
        match = _SIZE.fullmatch(size.strip().upper())
        parsed = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not isinstance(parsed, int) or isinstance(parsed, bool) or parsed < 1:
        raise ValueError(
            f'max_shard_size must be a number of bytes, or text with a unit such as "5GB", not {size!r}'
        )
    return parsed
