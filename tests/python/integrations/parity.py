"""What sets two models apart: bits of tensors, buffers and attributes, ties, what may be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Difference = tuple[Any, ...]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that a module has by name: parameters, buffers of either kind, plain attributes."""
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules(remove_duplicate=False)
        for place in (module._parameters, module._buffers, vars(module))
        for name, value in place.items()
        if isinstance(value, Tensor)
    }


def ties(model: nn.Module, key: Callable[[Tensor], int] = id) -> list[list[str]]:
    """Names of the same tensor, or of tensors that are otherwise one, as `key` tells."""
    names: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model).items():
        if tensor.numel() and not tensor.is_meta:
            names.setdefault(key(tensor), []).append(name)
    return sorted(group for group in names.values() if len(group) > 1)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal in type, shape, strides' order and every bit, not-a-numbers among them."""
    for facet in (type, _described):
        if facet(one) != facet(other):
            return False
    raw = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.is_meta or torch.equal(*raw)


def _described(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.device, tensor.requires_grad, tensor.is_contiguous()


def differences(actual: nn.Module, expected: nn.Module) -> Iterator[Difference]:
    """Each tensor that differs, ties that do, and the mode."""
    got, wanted = named_tensors(actual), named_tensors(expected)
    if got.keys() != wanted.keys():
        yield "names", sorted(got.keys() ^ wanted.keys())
    for name in sorted(got.keys() & wanted.keys()):
        if not same_bits(got[name], wanted[name]):
            yield name, _described(got[name]), _described(wanted[name])
    for kind, key in (("ties", id), ("shared memory", Tensor.data_ptr)):
        if ties(actual, key) != ties(expected, key):
            yield kind, ties(actual, key), ties(expected, key)
    if actual.training != expected.training:
        yield "training", actual.training, expected.training
