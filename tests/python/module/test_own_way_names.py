"""Which names a `load_state_dict` of a module's own misses, whether or not it says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flashpack import assign_from_file, pack_to_file
from torch import Tensor, nn


class Delegates(nn.Module):
    """As Megatron's Float16Module: it has the names of the module within."""

    def __init__(self) -> None:
        super().__init__()
        self.module: Any = nn.BatchNorm1d(2)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state: Any, strict: bool = True) -> Any:  # type: ignore[override]
        self.module.load_state_dict(state, strict=strict)


class DelegatesAndTells(Delegates):
    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return self.module.load_state_dict(state, strict=strict, assign=assign)


class Tells(nn.BatchNorm1d):
    def __init__(self) -> None:
        super().__init__(2)


class Silent(Tells):
    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        super().load_state_dict(state, strict=strict, assign=assign)


class ReturnsItself(Tells):
    def load_state_dict(self, state: Any, **options: Any) -> Any:
        super().load_state_dict(state, **options)
        return self


class Lenient(Tells):
    def load_state_dict(self, state: Any, **options: Any) -> Any:
        super().load_state_dict(state, **{**options, "strict": False})


class ByHand(Tells):
    def load_state_dict(self, state: Any, strict: bool = True) -> Any:  # type: ignore[override]
        own = self.state_dict()
        if strict and own.keys() != state.keys():
            raise RuntimeError("weight or bias or stranger")
        for name in own.keys() & state.keys():
            own[name].copy_(state[name])


KINDS: tuple[Callable[[], nn.Module], ...] = (
    Delegates,
    DelegatesAndTells,
    Silent,
    ReturnsItself,
    Lenient,
    ByHand,
)
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"eager": True}, {"in_place": True})


def state_with(fault: str) -> dict[str, Tensor]:
    state = {
        name: torch.rand(tensor.shape) + 1 if tensor.is_floating_point() else torch.tensor(3)
        for name, tensor in Tells().state_dict().items()
    }
    if fault in ("missing", "renamed"):
        bias = state.pop("bias")
    if fault == "renamed":
        state["x"] = bias
    if fault == "unknown":
        state["stranger"] = torch.ones(1)
    return state


def outcome(load: Callable[[], Any]) -> bool:
    try:
        load()
    except (RuntimeError, ValueError):
        return False
    return True


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("compress", [None, "fast"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("fault", ["none", "missing", "unknown", "renamed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_strict_load_refuses_what_load_state_dict_refuses(
    kind: Callable[[], nn.Module], fault: str, options: dict[str, Any], compress: str | None, path: Path
) -> None:
    model, expected = kind(), kind()
    before, state = values(model), state_with(fault)
    pack_to_file(state, path, compress=compress)
    taken = outcome(lambda: expected.load_state_dict(state, strict=True))
    assert outcome(lambda: assign_from_file(model, path, strict=True, **options)) is taken
    assert taken is (fault == "none" or kind is Lenient)
    for name, tensor in values(model).items():
        assert torch.equal(tensor, expected.state_dict()[name] if taken else before[name])


@pytest.mark.parametrize("fault", ["none", "missing", "unknown", "renamed"])
@pytest.mark.parametrize("kind", [DelegatesAndTells, Silent, ReturnsItself])
def test_meta_models_are_as_strict(kind: Callable[[], nn.Module], fault: str, path: Path) -> None:
    model, expected = kind().to("meta"), kind().to("meta")
    state = state_with(fault)
    pack_to_file(state, path)
    options: dict[str, Any] = {"strict": True, "assign": True}
    taken = outcome(lambda: expected.load_state_dict(state, **options))
    assert outcome(lambda: assign_from_file(model, path, strict=True)) is taken
    for name, tensor in model.state_dict().items():
        assert tensor.is_meta is not taken
        assert tensor.is_meta or torch.equal(tensor, state[name])


@pytest.mark.parametrize("fault", ["missing", "unknown", "renamed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lenient_load_takes_the_rest(kind: Callable[[], nn.Module], fault: str, path: Path) -> None:
    model, expected = kind(), kind()
    state = state_with(fault)
    pack_to_file(state, path)
    keys = expected.load_state_dict(state, strict=False)
    found = assign_from_file(model, path, strict=False)
    for name, tensor in values(model).items():
        assert torch.equal(tensor, expected.state_dict()[name])
    if kind is DelegatesAndTells:
        assert (found.missing_keys, found.unexpected_keys) == (keys.missing_keys, keys.unexpected_keys)


@pytest.mark.parametrize("kind", [Delegates, DelegatesAndTells, Silent, ReturnsItself])
def test_buffers_may_be_missing_unless_they_are_demanded(kind: Callable[[], nn.Module], path: Path) -> None:
    state = state_with("none")
    del state["running_var"]
    pack_to_file(state, path)
    assert assign_from_file(kind(), path).missing_keys == ["running_var"]
    with pytest.raises(ValueError, match="running_var"):
        assign_from_file(kind(), path, strict_buffers=True)
    assign_from_file(kind(), path, strict_buffers=True, ignore_names=["running_var"])


@pytest.mark.parametrize("kind", [Delegates, DelegatesAndTells])
def test_a_tied_name_is_not_missing(kind: type[Delegates], path: Path) -> None:
    def tied() -> Delegates:
        model = kind()
        model.module = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
        model.module["two"].weight = model.module["one"].weight
        return model

    model, state = tied(), tied().state_dict()
    del state["two.weight"]
    pack_to_file(state, path)
    assert assign_from_file(model, path, strict=True).missing_keys == []
    assert model.module["two"].weight is model.module["one"].weight
    assert torch.equal(model.module["one"].weight, state["one.weight"])


def test_a_name_that_a_module_misses_and_fills_is_missing(path: Path) -> None:
    class Fills(nn.Linear):
        def _load_from_state_dict(self, *arguments: Any) -> None:
            super()._load_from_state_dict(*arguments)
            self.bias.data.fill_(7)

    model, expected = Fills(2, 2), Fills(2, 2)
    state = {"weight": torch.ones(2, 2)}
    pack_to_file(state, path)
    with pytest.raises(ValueError, match="bias"):
        assign_from_file(model, path)
    keys = expected.load_state_dict(state, strict=False)
    assert assign_from_file(model, path, strict=False).missing_keys == keys.missing_keys == ["bias"]
    assert torch.equal(model.bias, expected.bias)
