"""0.4.5's home of the reading functions."""

from ._inspect.verify import get_flashpack_file_metadata, is_flashpack_file
from ._load.options import resolve_shard_strategy
from ._load.storage import (
    FlashTensorStorage,
    MacroblockSpec,
    iterate_from_flash_tensor,
    read_flashpack_file,
    revert_from_file,
)
from ._module.assign import assign_from_file
from ._ranks.load import read_flashpack_file_distributed

__all__ = [
    "FlashTensorStorage",
    "MacroblockSpec",
    "assign_from_file",
    "get_flashpack_file_metadata",
    "is_flashpack_file",
    "iterate_from_flash_tensor",
    "read_flashpack_file",
    "read_flashpack_file_distributed",
    "resolve_shard_strategy",
    "revert_from_file",
]
