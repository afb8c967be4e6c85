"""Small helpers under 0.4.5's names."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from ._core.dtypes import dtype_to_string as dtype_to_string
from ._core.dtypes import get_packing_dtype as get_packing_dtype
from ._core.dtypes import string_to_dtype as string_to_dtype
from ._core.dtypes import torch_dtype_to_numpy_dtype as torch_dtype_to_numpy_dtype
from ._core.names import filter_state_dict as filter_state_dict
from ._core.names import is_ignored_tensor_name as is_ignored_tensor_name
from ._core.native import environment
from ._core.text import human_duration as human_duration
from ._core.text import human_num_elements as human_num_elements
from ._core.text import say

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("flashpack")
# Of a dtype that no release of torch has; `torch.float4_e2m1fn_x2` is another.
float4_e2m1fn: torch.dtype | None = None


def effective_read_threads(requested: int, *, floor: int = 1) -> int:
    """`requested` threads, as far as there are processors for them or `floor` allows; at least one.

    FLASHPACK_NO_THREAD_CLAMP=1 leaves the number as it is.
    """
    try:
        processors = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # another system than Linux
        processors = os.cpu_count() or requested
    if environment()["FLASHPACK_NO_THREAD_CLAMP"]:
        return max(1, requested)
    return max(1, min(requested, max(processors, floor)))


def maybe_init_distributed(
    rank: int | None = None, local_rank: int | None = None, world_size: int | None = None
) -> None:
    """Make torch.distributed's process group of several ranks, unless there is one.

    What is None is taken from torchrun's variables. With CUDA, the device of this rank becomes the current
    one. Raises ValueError for a variable that holds no number, and what torch.distributed raises.
    """
    from ._ranks.group import make_group

    make_group(rank, local_rank, world_size)


def require_zstandard() -> ModuleType:
    """The package zstandard. Raises ImportError where it is not installed."""
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise ImportError("the optional package 'zstandard' is missing: pip install zstandard") from error


def get_module_and_attribute(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    """The submodule that holds the dotted `name`, and the name's last part. Raises AttributeError."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


@contextmanager
def timer(name: str, silent: bool = False) -> Iterator[None]:
    """Print how long the block took, unless silent."""
    started = time.perf_counter()
    yield
    if not silent:
        say(f"{name}: {human_duration(time.perf_counter() - started)}")


def diffusers_is_available() -> bool:
    """Whether diffusers is installed."""
    return importlib.util.find_spec("diffusers") is not None


def transformers_is_available() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None
