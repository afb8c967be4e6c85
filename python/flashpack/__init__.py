"""FlashPack: pack model weights into one file and load them back at the speed of the machine.

Nothing heavy is imported here. Every public name is fetched from its module on first use, so that
`import flashpack` costs about a millisecond and needs neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        commands,
        constants,
        deserialization,
        integrations,
        mixin,
        numpy,
        ops,
        serialization,
        utils,
    )
    from ._assign import assign_from_file
    from ._distributed import read_flashpack_file_distributed
    from ._errors import ChecksumError, FlashPackError, SignatureError
    from ._explain import Explanation, explain
    from ._file import FlashPackFile
    from ._file import open as open  # noqa: A004 (only ever flashpack.open)
    from ._file import open as safe_open
    from ._footer import get_flashpack_file_metadata, is_flashpack_file, verify_file
    from ._load import load_file
    from ._ops import release_pinned_pool
    from ._report import LoadReport, last_load
    from ._safetensors import load, save
    from ._save import pack_to_file, save_file
    from ._sharded import load_sharded
    from ._sign import sign_file
    from .integrations import patch_integrations
    from .mixin import FlashPackMixin

    __version__: str
    version: str
    __version_tuple__: tuple[int | str, ...]
    version_tuple: tuple[int | str, ...]

_HOMES = {
    "assign_from_file": "_assign",
    "read_flashpack_file_distributed": "_distributed",
    "ChecksumError": "_errors",
    "FlashPackError": "_errors",
    "SignatureError": "_errors",
    "Explanation": "_explain",
    "explain": "_explain",
    "FlashPackFile": "_file",
    "open": "_file",
    "get_flashpack_file_metadata": "_footer",
    "is_flashpack_file": "_footer",
    "verify_file": "_footer",
    "load_file": "_load",
    "LoadReport": "_report",
    "last_load": "_report",
    "load": "_safetensors",
    "save": "_safetensors",
    "pack_to_file": "_save",
    "release_pinned_pool": "_ops",
    "save_file": "_save",
    "load_sharded": "_sharded",
    "sign_file": "_sign",
    "patch_integrations": "integrations",
    "FlashPackMixin": "mixin",
}

_SUBMODULES = frozenset(
    {
        "commands",
        "constants",
        "deserialization",
        "integrations",
        "mixin",
        "numpy",
        "ops",
        "serialization",
        "utils",
    }
)

# `open` is left out: a star import must not hide the builtin.
__all__ = [
    "ChecksumError",
    "Explanation",
    "FlashPackError",
    "FlashPackFile",
    "FlashPackMixin",
    "LoadReport",
    "SignatureError",
    "__version__",
    "__version_tuple__",
    "assign_from_file",
    "commands",
    "constants",
    "deserialization",
    "explain",
    "get_flashpack_file_metadata",
    "integrations",
    "is_flashpack_file",
    "last_load",
    "load",
    "load_file",
    "load_sharded",
    "mixin",
    "numpy",
    "ops",
    "pack_to_file",
    "patch_integrations",
    "read_flashpack_file_distributed",
    "release_pinned_pool",
    "safe_open",
    "save",
    "save_file",
    "serialization",
    "sign_file",
    "utils",
    "verify_file",
    "version",
    "version_tuple",
]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("flashpack")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


def _version_tuple() -> tuple[int | str, ...]:
    """The version's parts, numbers as such: (0, 5, 0)."""
    parts = _version().replace("+", ".").split(".")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def __getattr__(name: str) -> Any:
    value: Any
    if name == "safe_open":
        value = importlib.import_module("._file", __name__).open
    elif name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    elif name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)  # binds itself as an attribute
    elif name in ("__version__", "version"):
        value = _version()
    elif name in ("__version_tuple__", "version_tuple"):
        value = _version_tuple()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES})
