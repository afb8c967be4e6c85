"""Tensors that share memory without being one object: what is written to one shows in the other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .._core.tensors import has_memory

Key = TypeVar("Key")


def overlapping(tensors: Mapping[Key, Tensor]) -> Iterator[list[Key]]:
    """Yields the keys of each group of tensors whose memory overlaps."""
    spans = [
        (tensor.data_ptr(), tensor.data_ptr() + _extent(tensor), key)
        for key, tensor in tensors.items()
        if tensor.numel()
    ]
    cluster: list[Key] = []
    start = end = 0
    for first, last, key in sorted(spans, key=lambda span: span[:2]):
        if first >= end:
            if _collide([tensors[each] for each in cluster], start, end):
                yield cluster
            cluster, start = [], first
        cluster.append(key)
        end = max(end, last)
    if _collide([tensors[each] for each in cluster], start, end):
        yield cluster


def overwritten(tensors: Mapping[Key, Tensor], values: Mapping[Key, Tensor]) -> list[Key]:
    """The keys of the tensors in one overlapping group that lose values when all are written in order."""
    start = min(map(Tensor.data_ptr, tensors.values()))
    end = max(tensor.data_ptr() + _extent(tensor) for tensor in tensors.values())
    memory = torch.empty(end - start, dtype=torch.uint8)
    wanted = {key: _bytes(values[key].to("cpu", tensor.dtype)) for key, tensor in tensors.items()}
    shown = {key: _part(memory, tensor, start) for key, tensor in tensors.items()}
    for key, part in shown.items():
        part.copy_(wanted[key])
    return [key for key, part in shown.items() if not torch.equal(part, wanted[key])]


def share_storage(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether a tensor in `some` and one in `others` lie in the same storage."""
    storages = [tensor.untyped_storage() for tensor in some if has_memory(tensor)]
    starts = sorted(map(Tensor.data_ptr, others)) if storages else []
    for storage in storages:
        place = bisect_left(starts, storage.data_ptr())
        if place < len(starts) and starts[place] < storage.data_ptr() + storage.nbytes():
            return True
    return False


def is_injective(tensor: Tensor) -> bool:
    """Whether each element has memory of its own."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return False
            reach += (size - 1) * stride
    return True


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    return (1 + sum(stride * (size - 1) for stride, size in steps)) * tensor.itemsize


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of each element, in one more dimension."""
    return tensor.unsqueeze(-1).contiguous().view(torch.uint8)


def _part(memory: Tensor, tensor: Tensor, start: int) -> Tensor:
    """The bytes of `tensor`, element by element, in `memory`, which stands for that from `start` on."""
    strides = [stride * tensor.itemsize for stride in tensor.stride()]
    return memory.as_strided((*tensor.shape, tensor.itemsize), (*strides, 1), tensor.data_ptr() - start)


def _collide(tensors: Sequence[Tensor], start: int, end: int) -> bool:
    """Whether two of a cluster have one of the bytes from `start` to `end` in common."""
    if len(tensors) < 2:
        return False
    if all(map(Tensor.is_contiguous, tensors)) or not all(map(is_injective, tensors)):
        return True
    taken = torch.zeros(end - start, dtype=torch.bool)
    for tensor in tensors:
        own = _part(taken, tensor, start)
        if own.any():
            return True
        own.fill_(True)
    return False
