"""Modules made at random: ties by identity and by memory, shared submodules, own ways of loading."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

SHAPES = ((), (1,), (3,), (2, 3), (4, 4), (0, 2), (2, 1, 3))
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.bool, torch.uint8)


class Doubles(nn.Module):
    """Doubles what it holds itself."""

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        own = {
            name: 2 * value if name.rpartition(".")[0] == prefix[:-1] and value.is_floating_point() else value
            for name, value in state.items()
        }
        super()._load_from_state_dict(own, prefix, *rest)


class Hooked(nn.Module):
    """Has a hook that does nothing, which nobody can know."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(lambda *_: None)


class Whole(nn.Module):
    """Has a `load_state_dict` of its own, which torch calls of the outermost module alone."""

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(dict(state), strict, assign)


KINDS = (*([nn.Module] * 12), Doubles, Hooked, Whole)


class Builder:
    """Makes the same module of the same `seed`, with other values for other `values`."""

    def __init__(self, seed: int, values: int) -> None:
        self._choice = random.Random(seed)
        self._generator = torch.Generator().manual_seed(values)
        self._parameters: list[nn.Parameter] = []
        self._modules: list[nn.Module] = []
        self.shares_in_part = False

    def module(self, depth: int) -> nn.Module:
        module = self._choice.choice(KINDS)()
        for number in range(self._choice.randrange(3)):
            module.register_parameter(f"parameter{number}", self._parameter())
        for number in range(self._choice.randrange(3)):
            persistent = self._choice.random() < 0.6
            module.register_buffer(f"buffer{number}", self._buffer(), persistent=persistent)
        if self._choice.random() < 0.15:
            module.add_module("norm", nn.BatchNorm1d(3))
        for number in range(self._choice.randrange(4) if depth else 0):
            known = self._modules and self._choice.random() < 0.12
            module.add_module(
                f"module{number}", self._choice.choice(self._modules) if known else self.module(depth - 1)
            )
        self._modules.append(module)
        return module

    def _parameter(self) -> nn.Parameter | None:
        how = self._choice.choices(["new", "none", "tied", "memory", "part"], [66, 8, 10, 10, 6])[0]
        if how == "none":
            return None
        if how != "new" and self._parameters:
            other = self._choice.choice(self._parameters)
            if how == "tied":
                return other
            made = nn.Parameter(self._view(other, how), requires_grad=False)
        else:
            made = nn.Parameter(self._values(FLOATS), requires_grad=self._choice.random() < 0.8)
        self._parameters.append(made)
        return made

    def _buffer(self) -> Tensor | None:
        how = self._choice.choices(["new", "none", "memory", "part"], [73, 10, 10, 7])[0]
        if how == "none":
            return None
        if how != "new" and self._parameters:
            return self._view(self._choice.choice(self._parameters), how)
        return self._values(FLOATS + INTEGERS)

    def _view(self, tensor: Tensor, how: str) -> Tensor:
        if how == "part" and tensor.dim() and tensor.shape[0] > 1 and tensor.numel():
            self.shares_in_part = True
            return tensor.detach()[1:]
        return tensor.detach()

    def _values(self, dtypes: tuple[torch.dtype, ...]) -> Tensor:
        values = 8 * torch.rand(self._choice.choice(SHAPES), generator=self._generator)
        return values.to(self._choice.choice(dtypes))
