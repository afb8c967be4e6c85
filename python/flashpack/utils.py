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
from typing import TYPE_CHECKING, Any

from ._environment import flag
from ._hints import close_match
from ._names import filter_state_dict, is_ignored_tensor_name
from ._printable import say

if TYPE_CHECKING:
    import torch

__all__ = [
    "diffusers_is_available",
    "dtype_to_string",
    "effective_read_threads",
    "filter_state_dict",
    "get_module_and_attribute",
    "get_packing_dtype",
    "human_duration",
    "human_num_elements",
    "is_ignored_tensor_name",
    "logger",
    "maybe_init_distributed",
    "require_zstandard",
    "string_to_dtype",
    "timer",
    "torch_dtype_to_numpy_dtype",
    "transformers_is_available",
]

logger = logging.getLogger("flashpack")
# Of a dtype that no release of torch has; `torch.float4_e2m1fn_x2` is another.
float4_e2m1fn: torch.dtype | None = None
_WITHOUT_NUMPY = ("bfloat16", "complex32", "float4", "float8")


_DTYPE_ALIASES = {
    "double": "float64",
    "float": "float32",
    "half": "float16",
    **{f"{prefix}{bits}": f"float{bits}" for prefix in ("fp", "f") for bits in (16, 32, 64)},
    **dict.fromkeys(("bf16", "bfloat"), "bfloat16"),
}


def dtype_name(name: str) -> str:
    """`name` as torch spells it: in lower case, without `torch.`, and in full for fp16, bf16 and so on."""
    plain = name.strip().lower().removeprefix("torch.")
    return _DTYPE_ALIASES.get(plain, plain)


def string_to_dtype(string: str) -> torch.dtype:
    """torch's dtype of this name, as `dtype_name` takes it. Raises ValueError for any other text."""
    import torch

    name = dtype_name(string)
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        known = [each for each in dir(torch) if isinstance(getattr(torch, each), torch.dtype)]
        likely = [each for each in known if name and each.startswith(name)]
        meant = " or ".join(likely) or close_match(name, known) or "bfloat16, float16, float32"
        raise ValueError(f"Unsupported dtype string: {string!r} (did you mean {meant}?)")
    return dtype


def dtype_to_string(dtype: torch.dtype) -> str:
    """The name of a torch dtype without `torch.`, as footers hold it. Raises ValueError otherwise."""
    import torch

    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"Unsupported dtype: {dtype!r}")
    return str(dtype).removeprefix("torch.")


def get_packing_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or the unsigned integer of its size if numpy lacks it. Raises ValueError for others."""
    import torch

    if not dtype_to_string(dtype).startswith(_WITHOUT_NUMPY):
        return dtype
    packing: torch.dtype = getattr(torch, f"uint{8 * dtype.itemsize}")
    return packing


def torch_dtype_to_numpy_dtype(dtype: torch.dtype) -> Any:
    """numpy's type of `get_packing_dtype(dtype)`, such as numpy.float32. Raises ValueError if it has none."""
    import numpy

    name = dtype_to_string(get_packing_dtype(dtype))
    found = getattr(numpy, "bool_" if name == "bool" else name, None)
    if found is None:
        raise ValueError(f"Unsupported dtype: numpy has none for {dtype}")
    return found


def effective_read_threads(requested: int, *, floor: int = 1) -> int:
    """`requested` threads, as far as there are processors for them or `floor` allows; at least one.

    FLASHPACK_NO_THREAD_CLAMP=1 leaves the number as it is.
    """
    try:
        processors = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # another system than Linux
        processors = os.cpu_count() or requested
    if flag("FLASHPACK_NO_THREAD_CLAMP", False):
        return max(1, requested)
    return max(1, min(requested, max(processors, floor)))


def maybe_init_distributed(
    rank: int | None = None, local_rank: int | None = None, world_size: int | None = None
) -> None:
    """Make torch.distributed's process group of several ranks, unless there is one.

    What is None is taken from torchrun's variables. With CUDA, the device of this rank becomes the current
    one. Raises ValueError for a variable that holds no number, and what torch.distributed raises.
    """
    from ._ranks import make_group

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


def human_num_elements(elements: int) -> str:
    """A count such as 1.50K, 2.30M, 7.00B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if elements > size:
            return f"{elements / size:.2f}{unit}"
    return str(elements)


def human_duration(seconds: float) -> str:
    """A duration such as 3.10µs, 42.00ms, 5.20s, 2m5s, 1h2m3s."""
    if seconds < 60:
        for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if seconds >= size:
                return f"{seconds / size:.2f}{unit}"
        return f"{seconds / 1e-9:.2f}ns"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{left}s" if hours else f"{minutes}m{left}s"


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
