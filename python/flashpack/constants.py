"""0.4.5's home of the numbers of the file format and of the defaults of signatures."""

from ._core.constants import DEFAULT_ALIGN_BYTES as DEFAULT_ALIGN_BYTES
from ._core.constants import DEFAULT_CHUNK_BYTES as DEFAULT_CHUNK_BYTES
from ._core.constants import DEFAULT_NUM_STREAMS as DEFAULT_NUM_STREAMS
from ._core.constants import DEFAULT_NUM_WRITE_WORKERS as DEFAULT_NUM_WRITE_WORKERS
from ._core.constants import DEFAULT_SHARD_BYTES as DEFAULT_SHARD_BYTES
from ._core.constants import DEFAULT_SHARD_STRATEGY as DEFAULT_SHARD_STRATEGY
from ._core.constants import FILE_FORMAT_V3 as FILE_FORMAT_V3
from ._core.constants import FILE_FORMAT_V4 as FILE_FORMAT_V4
from ._core.constants import MAGIC as MAGIC
from ._core.constants import SHARD_ALIGN_BYTES as SHARD_ALIGN_BYTES
from ._core.constants import SHARD_STRATEGIES as SHARD_STRATEGIES
from ._core.constants import SHARD_STRATEGY_CONTIGUOUS as SHARD_STRATEGY_CONTIGUOUS
from ._core.constants import SHARD_STRATEGY_WINDOWS as SHARD_STRATEGY_WINDOWS
from ._core.constants import U64LE as U64LE
