"""0.4.5's home of reading with several threads."""

from ._core.ops import release_pinned_pool as release_pinned_pool
from ._load.storage import parallel_read_into_storage as parallel_read_into_storage
from ._load.storage import parallel_read_supported as parallel_read_supported
from ._load.storage import sharded_read_available as sharded_read_available
