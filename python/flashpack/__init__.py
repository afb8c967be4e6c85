"""FlashPack: pack model weights into one file and load them back at the speed of the machine.

Nothing heavy is imported here. Every public name is fetched from its module on first use, so that
`import flashpack` costs about a millisecond and needs neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import commands as commands
    from . import constants as constants
    from . import deserialization as deserialization
    from . import integrations as integrations
    from . import mixin as mixin
    from . import numpy as numpy
    from . import ops as ops
    from . import parallel_read as parallel_read
    from . import serialization as serialization
    from . import utils as utils
    from ._core.errors import ChecksumError as ChecksumError
    from ._core.errors import FlashPackError as FlashPackError
    from ._core.errors import SignatureError as SignatureError
    from ._core.ops import release_pinned_pool as release_pinned_pool
    from ._inspect.explain import Explanation as Explanation
    from ._inspect.explain import explain as explain
    from ._inspect.verify import get_flashpack_file_metadata as get_flashpack_file_metadata
    from ._inspect.verify import is_flashpack_file as is_flashpack_file
    from ._inspect.verify import verify_file as verify_file
    from ._load.checkpoint import load_checkpoint as load_checkpoint
    from ._load.file import FlashPackFile as FlashPackFile
    from ._load.file import open as open  # noqa: A004 (only ever flashpack.open)
    from ._load.load import load_file as load_file
    from ._load.report import LoadReport as LoadReport
    from ._load.report import last_load as last_load
    from ._module.assign import assign_from_file as assign_from_file
    from ._parallel.load import load_sharded as load_sharded
    from ._ranks.load import read_flashpack_file_distributed as read_flashpack_file_distributed
    from ._save.checkpoint import save_checkpoint as save_checkpoint
    from ._save.pack import pack_to_file as pack_to_file
    from ._save.pack import save_file as save_file
    from ._save.sign import sign_file as sign_file
    from .integrations import patch_integrations as patch_integrations
    from .integrations._safetensors import load as load
    from .integrations._safetensors import load_model as load_model
    from .integrations._safetensors import save as save
    from .integrations._safetensors import save_model as save_model
    from .mixin import FlashPackMixin as FlashPackMixin
    from .version import __commit_id__ as __commit_id__
    from .version import __version__ as __version__
    from .version import __version_tuple__ as __version_tuple__
    from .version import commit_id as commit_id
    from .version import version as version
    from .version import version_tuple as version_tuple

    safe_open = open

_VERSION = importlib.import_module(".version", __name__)
# The import bound the module's name, which is the string's: importing the module again leaves it alone.
globals().pop("version", None)

# The public names of each module.
_HOMES = {
    "_core.errors": ("ChecksumError", "FlashPackError", "SignatureError"),
    "_core.ops": ("release_pinned_pool",),
    "_inspect.explain": ("Explanation", "explain"),
    "_inspect.verify": ("get_flashpack_file_metadata", "is_flashpack_file", "verify_file"),
    "_load.checkpoint": ("load_checkpoint",),
    "_load.file": ("FlashPackFile", "open"),
    "_load.load": ("load_file",),
    "_load.report": ("LoadReport", "last_load"),
    "_module.assign": ("assign_from_file",),
    "_parallel.load": ("load_sharded",),
    "_ranks.load": ("read_flashpack_file_distributed",),
    "_save.checkpoint": ("save_checkpoint",),
    "_save.pack": ("pack_to_file", "save_file"),
    "_save.sign": ("sign_file",),
    "integrations": ("patch_integrations",),
    "integrations._safetensors": ("load", "load_model", "save", "save_model"),
    "mixin": ("FlashPackMixin",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = (
    *("commands", "constants", "deserialization", "integrations", "mixin"),
    *("numpy", "ops", "parallel_read", "serialization", "utils"),
)

# `open` is left out: a star import must not hide the builtin.
__all__ = [*({*_MODULE_OF, *_SUBMODULES, *_VERSION.__all__, "safe_open"} - {"open"})]


def _import(module: str, name: str) -> Any:
    """The module of ours that `name` is in. Raises ImportError that says what to install."""
    errors = importlib.import_module("._core.errors", __name__)
    with errors.naming_torch(f"flashpack.{name}"):
        return importlib.import_module(f".{module}", __name__)


def __getattr__(name: str) -> Any:
    value: Any
    if name == "safe_open":
        value = _import("_load.file", name).open
    elif name in _MODULE_OF:
        value = getattr(_import(_MODULE_OF[name], name), name)
    elif name in _SUBMODULES:
        return _import(name, name)  # binds itself as an attribute
    elif name in _VERSION.__all__:
        value = getattr(_VERSION, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULE_OF})
