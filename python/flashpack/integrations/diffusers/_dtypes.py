"""FileDtypes of a loaded model: the file's, or those that diffusers' own `dtype=` gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..._module.slots import find_slots
from .._build import FileDtypes

_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def main_dtype(cls: Any, stored: FileDtypes) -> torch.dtype | None:
    """The floating dtype of most tensors in the file, modules that `cls` keeps in float32 aside, if any."""
    kept = _kept_in_float32(cls)
    floats = {name: dtype for name, dtype in stored.items() if dtype in _PLAIN}
    cast = [dtype for name, dtype in floats.items() if not kept.intersection(name.split("."))]
    counts = Counter(cast or floats.values())
    return max(counts, key=counts.__getitem__, default=None)


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, modules make tensors of `dtype` where they do not say which: buffers that no file holds.

    Nothing changes for None and for dtypes that torch cannot compute in (float8).
    """
    if dtype not in _PLAIN:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cast(model: nn.Module, dtype: torch.dtype | None, missing: Collection[str] = ()) -> None:
    """Cast what the file held to `dtype`, modules that the class keeps in float32 to that.

    `missing` names what it did not hold. All that is floating becomes float8_e4m3fn, as in diffusers, unless
    something is kept.
    """
    if dtype is None:
        return
    kept = _kept_in_float32(type(model))
    for slot in find_slots(model).values():
        if slot.persistent and slot.tensor.is_floating_point() and slot.name not in missing:
            wanted = torch.float32 if kept.intersection(slot.name.split(".")) else dtype
            slot.tensor.data = slot.tensor.data.to(wanted)
    if dtype == torch.float8_e4m3fn and not kept:
        model.to(dtype)


def _kept_in_float32(cls: Any) -> set[str]:
    """Names of submodules."""
    kept = getattr(cls, "_keep_in_fp32_modules", None) or []
    return {kept} if isinstance(kept, str) else set(kept)
