"""Loading in another dtype than the file's, as diffusers' own `dtype=` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..._slots import find_slots
from ._classes import is_transformers_model


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
    """Cast floating parameters and buffers to `dtype`, those that the class keeps in float32 to that."""
    if dtype is None:
        return
    kept = _kept_in_float32(model, dtype)
    for slot in find_slots(model).values():
        if slot.persistent and slot.tensor.is_floating_point():
            wanted = torch.float32 if kept.intersection(slot.name.split(".")) else dtype
            slot.tensor.data = slot.tensor.data.to(wanted)


def _kept_in_float32(model: nn.Module, dtype: torch.dtype) -> set[str]:
    """Names of submodules. transformers has two lists, the first for float16 alone; diffusers one for all."""
    lists = ["_keep_in_fp32_modules"]
    if is_transformers_model(type(model)):
        lists = lists if dtype == torch.float16 else []
        lists += ["_keep_in_fp32_modules_strict"] if dtype in (torch.float16, torch.bfloat16) else []
    names: set[str] = set()
    for each in lists:
        kept = getattr(model, each, None) or []
        names |= {kept} if isinstance(kept, str) else set(kept)
    return names
