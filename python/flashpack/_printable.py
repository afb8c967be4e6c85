"""Text out of files, made safe to show."""

from __future__ import annotations


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
