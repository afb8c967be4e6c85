"""What messages say about names: which one was perhaps meant, and keywords that nothing has taken."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Iterable

_PACKAGE = os.path.dirname(__file__) + os.sep  # noqa: PTH120 (compared with the text of other paths)


def close_match(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` is most probably a misspelling of."""
    return next(iter(difflib.get_close_matches(name[:100], list(known), 1, 0.75)), None)


def warn_of_unused(unused: Iterable[str], known: Iterable[str]) -> None:
    """Warn about keyword arguments that nothing has taken, each with the one of `known` that is like it.

    The warning points at the first caller outside of this package.
    """
    names, candidates = sorted(unused), list(known)
    if not names:
        return
    hints = [(name, close_match(name, candidates)) for name in names[:20]]
    shown = [f"{name[:100]!r}" + (f" (did you mean {hint!r}?)" if hint else "") for name, hint in hints]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    warnings.warn(
        f"flashpack ignores unknown keyword arguments: {', '.join(shown)}{more}",
        stacklevel=_levels_to_caller(),
    )


def _levels_to_caller() -> int:
    """The `stacklevel`, for the function that calls this one, of the innermost frame of other code."""
    level = 1
    while sys._getframe(level).f_code.co_filename.startswith(_PACKAGE):
        level += 1
    return level
