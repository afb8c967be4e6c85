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
        parallel_read,
        serialization,
        utils,
    )
    from ._core.errors import ChecksumError, FlashPackError, SignatureError
    from ._core.ops import release_pinned_pool
    from ._inspect.explain import Explanation, explain
    from ._inspect.verify import get_flashpack_file_metadata, is_flashpack_file, verify_file
    from ._load.file import FlashPackFile
    from ._load.file import open as open  # noqa: A004 (only ever flashpack.open)
    from ._load.file import open as safe_open
    from ._load.load import load_file
    from ._load.report import LoadReport, last_load
    from ._module.assign import assign_from_file
    from ._parallel.load import load_sharded
    from ._ranks.load import read_flashpack_file_distributed
    from ._save.pack import pack_to_file, save_file
    from ._save.sign import sign_file
    from .integrations import patch_integrations
    from .integrations._safetensors import load, load_model, save, save_model
    from .mixin import FlashPackMixin
    from .version import __commit_id__, __version__, __version_tuple__, commit_id, version, version_tuple

_VERSION = importlib.import_module(".version", __name__)
# The import bound the module's name, which is the string's: importing the module again leaves it alone.
globals().pop("version", None)

_HOMES = {
    "assign_from_file": "_module.assign",
    "read_flashpack_file_distributed": "_ranks.load",
    "ChecksumError": "_core.errors",
    "FlashPackError": "_core.errors",
    "SignatureError": "_core.errors",
    "Explanation": "_inspect.explain",
    "explain": "_inspect.explain",
    "FlashPackFile": "_load.file",
    "open": "_load.file",
    "get_flashpack_file_metadata": "_inspect.verify",
    "is_flashpack_file": "_inspect.verify",
    "verify_file": "_inspect.verify",
    "load_file": "_load.load",
    "LoadReport": "_load.report",
    "last_load": "_load.report",
    "load": "integrations._safetensors",
    "load_model": "integrations._safetensors",
    "save": "integrations._safetensors",
    "save_model": "integrations._safetensors",
    "pack_to_file": "_save.pack",
    "release_pinned_pool": "_core.ops",
    "save_file": "_save.pack",
    "load_sharded": "_parallel.load",
    "sign_file": "_save.sign",
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
        "parallel_read",
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
    "__commit_id__",
    "__version__",
    "__version_tuple__",
    "assign_from_file",
    "commands",
    "commit_id",
    "constants",
    "deserialization",
    "explain",
    "get_flashpack_file_metadata",
    "integrations",
    "is_flashpack_file",
    "last_load",
    "load",
    "load_file",
    "load_model",
    "load_sharded",
    "mixin",
    "numpy",
    "ops",
    "pack_to_file",
    "parallel_read",
    "patch_integrations",
    "read_flashpack_file_distributed",
    "release_pinned_pool",
    "safe_open",
    "save",
    "save_file",
    "save_model",
    "serialization",
    "sign_file",
    "utils",
    "verify_file",
    "version",
    "version_tuple",
]


def _import(module: str, name: str) -> Any:
    """The module of ours that `name` is in. Raises ImportError that says what to install."""
    errors = importlib.import_module("._core.errors", __name__)
    with errors.naming_torch(f"flashpack.{name}"):
        return importlib.import_module(f".{module}", __name__)


def __getattr__(name: str) -> Any:
    value: Any
    if name == "safe_open":
        value = _import("_load.file", name).open
    elif name in _HOMES:
        value = getattr(_import(_HOMES[name], name), name)
    elif name in _SUBMODULES:
        return _import(name, name)  # binds itself as an attribute
    elif name in _VERSION.__all__:
        value = getattr(_VERSION, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES})
