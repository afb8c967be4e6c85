"""0.4.5's home of reading with several threads."""

from ._core.ops import release_pinned_pool
from ._load.storage import parallel_read_into_storage, parallel_read_supported, sharded_read_available

__all__ = [
    "parallel_read_into_storage",
    "parallel_read_supported",
    "release_pinned_pool",
    "sharded_read_available",
]
