"""The numbers of the file format and the defaults of 0.4.5's signatures."""

import struct

FILE_FORMAT_V3 = "flashpack_v3"  # one dtype
FILE_FORMAT_V4 = "flashpack_v4"  # several dtypes

MAGIC = b"FLASHPK\0"  # the last 8 bytes of a file
U64LE = struct.Struct("<Q")  # the footer's length in bytes, just before the magic

SET_KEY = "flashpack_set"  # of the metadata of shards: which save they are of

DEFAULT_ALIGN_BYTES = 128

# Accepted for compatibility: the native reader and writer choose these by themselves.
DEFAULT_NUM_WRITE_WORKERS = 32
DEFAULT_NUM_STREAMS = 4
DEFAULT_CHUNK_BYTES = 4 * 1024 * 1024

# How ranks share the reading of one file.
SHARD_STRATEGY_CONTIGUOUS = "contiguous"  # each rank reads one part
SHARD_STRATEGY_WINDOWS = "windows"  # they take turns
SHARD_STRATEGIES = (SHARD_STRATEGY_CONTIGUOUS, SHARD_STRATEGY_WINDOWS)
DEFAULT_SHARD_STRATEGY = SHARD_STRATEGY_CONTIGUOUS
DEFAULT_SHARD_BYTES = 256 * 1024 * 1024  # the most that a rank reads at a time
SHARD_ALIGN_BYTES = 4096  # what it reads begins at a multiple of this

# The key of a file's metadata that holds the values of a checkpoint beside its tensors, as JSON.
CHECKPOINT_KEY = "flashpack.checkpoint"
