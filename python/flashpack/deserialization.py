"""0.4.5's home of the reading functions."""

from ._assign import assign_from_file
from ._distributed import read_flashpack_file_distributed
from ._footer import get_flashpack_file_metadata, is_flashpack_file
from ._options import resolve_shard_strategy
from ._storage import (
    FlashTensorStorage,
    MacroblockSpec,
    iterate_from_flash_tensor,
    read_flashpack_file,
    revert_from_file,
)

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
