"""Modules whose own loading code writes to their tensors: every write counts, and none outlives a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flashpack import assign_from_file, pack_to_file
from torch import Tensor, nn


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.register_buffer("table", torch.zeros(4))
        self.register_buffer("cache", torch.zeros(4), persistent=False)


def write(module: Any, state: Any, prefix: str = "") -> None:
    module.weight.data.copy_(state[prefix + "weight"])
    module.table.data.copy_(state[prefix + "table"])


class ByData(Base):
    def _load_from_state_dict(self, state: Any, prefix: str, *_: Any) -> None:
        write(self, state, prefix)


class ByNumpy(Base):
    def _load_from_state_dict(self, state: Any, prefix: str, *_: Any) -> None:
        self.weight.detach().numpy()[:] = state[prefix + "weight"].numpy()
        self.table.numpy()[:] = state[prefix + "table"].numpy()  # type: ignore[operator]


class ByCopy(Base):
    def _load_from_state_dict(self, state: Any, prefix: str, *_: Any) -> None:
        with torch.no_grad():
            self.weight.copy_(state[prefix + "weight"])
            self.table.copy_(state[prefix + "table"])  # type: ignore[operator]


class Afterwards(Base):
    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        self.weight.data.mul_(3)
        self.cache.data.copy_(self.weight.data * 2)  # type: ignore[operator]


class Whole(Base):
    def load_state_dict(self, state: Any) -> None:  # type: ignore[override]
        write(self, state)


class WholeThatMayAssign(Base):
    def load_state_dict(self, state: Any, **_: Any) -> None:  # type: ignore[override]
        write(self, state)


class ByHook(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(self.hook)

    @staticmethod
    def hook(module: Any, state: Any, prefix: str, *_: Any) -> None:
        write(module, state, prefix)
        state[prefix + "table"] = module.table


KINDS = (ByData, ByNumpy, ByCopy, Afterwards, Whole, WholeThatMayAssign, ByHook)
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"eager": True}, {"in_place": True}, {"dtype": "model"})


def alone(kind: type[Base]) -> nn.Module:
    return kind()


def beside(kind: type[Base]) -> nn.Module:
    """With another module; torch calls no `load_state_dict` but the outermost one."""
    return nn.ModuleDict({"own": kind(), "plain": nn.Linear(2, 2)})


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}


def assert_same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    tensors = tensors_of(model)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("compress", [None, "fast"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [alone, beside])
@pytest.mark.parametrize("kind", KINDS)
def test_what_modules_write_is_kept(
    kind: type[Base],
    make: Callable[[type[Base]], nn.Module],
    options: dict[str, Any],
    compress: str | None,
    path: Path,
) -> None:
    model, expected = make(kind), make(kind)
    parameters = dict(model.named_parameters())
    state = state_of(model)
    pack_to_file(state, path, compress=compress)
    expected.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    assert assign_from_file(model, path, strict=True, **options) == ([], [])
    assert_same(model, tensors_of(expected))
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("fault", ["shape", "missing", "unknown"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_load_leaves_what_was_there(
    kind: type[Base], fault: str, options: dict[str, Any], path: Path
) -> None:
    model = beside(kind)
    before, state = tensors_of(model), state_of(model)
    if fault == "shape":
        state["plain.weight"] = torch.ones(9, 9)
    elif fault == "missing":
        del state["plain.bias"]
    else:
        state["stranger"] = torch.ones(1)
    pack_to_file(state, path)
    with pytest.raises(ValueError, match=r"plain|stranger"):
        assign_from_file(model, path, strict=True, **options)
    assert_same(model, before)


@pytest.mark.parametrize("kind", [ByData, ByCopy, Afterwards])
def test_a_meta_model_gets_what_assign_gives(kind: type[Base], path: Path) -> None:
    model, expected = beside(kind).to("meta"), beside(kind).to("meta")
    state = state_of(beside(kind))
    pack_to_file(state, path)
    expected.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    assign_from_file(model, path, strict=True)
    for name, tensor in model.state_dict().items():
        assert tensor.is_meta == expected.state_dict()[name].is_meta
        assert tensor.is_meta or torch.equal(tensor, expected.state_dict()[name])


def test_torchs_own_code_gets_no_copies_of_parameters(path: Path) -> None:
    """Only what a module with code of its own holds is copied before: models are large."""
    seen: dict[str, int] = {}

    class Watches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.plain = nn.Parameter(torch.zeros(4)), nn.Linear(2, 2)

        def _load_from_state_dict(self, *arguments: Any) -> None:
            seen.update({name: each.data_ptr() for name, each in self.named_parameters()})
            super()._load_from_state_dict(*arguments)

    model = Watches()
    pointers = {name: each.data_ptr() for name, each in model.named_parameters()}
    pack_to_file(state_of(model), path)
    assign_from_file(model, path)
    assert {name for name, pointer in seen.items() if pointer == pointers[name]} == {
        "plain.weight",
        "plain.bias",
    }
