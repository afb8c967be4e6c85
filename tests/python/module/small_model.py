"""A small model, and what tests of loads into it compare."""

from __future__ import annotations

from typing import Any

import torch
from helpers import bits
from torch import Tensor, nn


class Small(nn.Module):
    """Parameters, a frozen one, a tied pair, buffers of every kind and a shared submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("scale", torch.rand(()))
        self.register_buffer("cache", torch.rand(2), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.embed(tokens))) * self.scale + self.frozen.sum()
        return out


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Object for object and bit for bit what a model is, attributes aside."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        name: (
            id(tensor),
            tensor.data_ptr(),
            tensor._version,
            tensor.dtype,
            tensor.requires_grad,
            None if tensor.is_meta else bits(tensor),
        )
        for name, tensor in named
    }


def without(source: nn.Module, *names: str, **more: Tensor) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in source.state_dict().items() if name not in names} | more
