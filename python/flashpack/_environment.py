"""Switches among the environment variables, as `src/options.rs` reads them."""

from __future__ import annotations

import os


def flag(name: str, default: bool) -> bool:
    """Whether the variable `name` is on; `default` where it is unset or empty.

    Raises ValueError for a value that is neither 1, true, yes, on nor 0, false, no, off, in any case.
    """
    value = os.environ.get(name, "").strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    if value:
        raise ValueError(f"{name} is {value!r}, expected 0 or 1")
    return default
