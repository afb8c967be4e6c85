"""Loading in another dtype than the file's, as diffusers' own `dtype=` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..._slots import find_slots


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, modules make tensors of `dtype` where they do not say which: buffers that no file holds.

    Nothing changes for None and for dtypes that torch cannot compute in (float8).
    """
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cast(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Cast floating parameters and buffers to `dtype`, those of `_keep_in_fp32_modules` to float32."""
    if dtype is None:
        return
    kept = getattr(model, "_keep_in_fp32_modules", None) or []
    parts = {kept} if isinstance(kept, str) else set(kept)
    for slot in find_slots(model).values():
        if slot.persistent and slot.tensor.is_floating_point():
            wanted = torch.float32 if parts.intersection(slot.name.split(".")) else dtype
            slot.tensor.data = slot.tensor.data.to(wanted)
