"""The package's version, under each of 0.4.5's names. Found on first use."""

from __future__ import annotations

from typing import Any

__version__: str
version: str
__version_tuple__: tuple[int | str, ...]
version_tuple: tuple[int | str, ...]
# Which commit a release was built from is not recorded.
__commit_id__: str | None = None
commit_id: str | None = None

__all__ = ["__commit_id__", "__version__", "__version_tuple__", "commit_id", "version", "version_tuple"]


def __getattr__(name: str) -> Any:
    if name in ("__version__", "version"):
        return _installed()
    if name in ("__version_tuple__", "version_tuple"):
        parts = _installed().replace("+", ".").split(".")
        return tuple(int(part) if part.isdecimal() else part for part in parts)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _installed() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("flashpack")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
