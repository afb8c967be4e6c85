"""Small helpers under 0.4.5's names."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._names import filter_state_dict, is_ignored_tensor_name
from ._printable import say

if TYPE_CHECKING:
    import torch

__all__ = [
    "diffusers_is_available",
    "dtype_to_string",
    "filter_state_dict",
    "get_module_and_attribute",
    "human_duration",
    "human_num_elements",
    "is_ignored_tensor_name",
    "string_to_dtype",
    "timer",
    "transformers_is_available",
]


def string_to_dtype(string: str) -> torch.dtype:
    """torch's dtype of this name, with or without `torch.`. Raises ValueError for any other text."""
    import torch

    dtype = getattr(torch, string.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"Unsupported dtype: {string!r}")
    return dtype


def dtype_to_string(dtype: torch.dtype) -> str:
    """The name of a torch dtype without `torch.`, as footers hold it. Raises ValueError otherwise."""
    import torch

    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"Unsupported dtype: {dtype!r}")
    return str(dtype).removeprefix("torch.")


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
