"""Names of dtypes. Needs torch only where a dtype is made."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from .names import close_match
from .native import dtypes

if TYPE_CHECKING:
    import numpy
    import torch

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


@functools.cache
def is_castable(dtype: torch.dtype) -> bool:
    """Whether loads and saves cast it: floating numbers, one to an element."""
    facts = dtypes().get(dtype_to_string(dtype))
    return facts is not None and facts.castable


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


def numpy_dtype(name: str, dtype: str) -> numpy.dtype[Any]:
    """The counterpart of torch's `dtype` for record `name`. Raises ValueError if there is none."""
    import numpy

    try:
        return numpy.dtype(dtype)
    except TypeError:
        pass
    try:
        named: numpy.dtype[Any] = numpy.dtype(getattr(importlib.import_module("ml_dtypes"), dtype))
        return named
    except (ImportError, AttributeError):
        raise ValueError(
            f"record {name!r} is {dtype}, which NumPy lacks: pip install ml_dtypes, or load it with torch"
        ) from None
