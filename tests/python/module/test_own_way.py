"""Modules that load in their own way: assign_from_file gives them what load_state_dict gives."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from flashpack import assign_from_file, load_file, pack_to_file
from torch import Tensor, nn
from torch.ao.quantization import PerChannelMinMaxObserver
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, weight_norm


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(3, 3)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in ("weight", "bias"):
            if prefix + "old." + name in state:
                state[prefix + "new." + name] = state.pop(prefix + "old." + name)
        super()._load_from_state_dict(state, prefix, *rest)


class Derived(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.refreshed = 0
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())
        self.refresh()
        self.refreshed = 0

    def refresh(self) -> None:
        self.refreshed += 1
        self.fused = self.weight.detach() @ self.weight.detach()


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        state.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state, prefix, *rest)


class Overrides(nn.Linear):
    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(
            {n.removeprefix("module."): t for n, t in state.items()}, *args, **kwargs
        )


class Copies(nn.Linear):
    def load_state_dict(self, state: Any, strict: bool = True) -> Any:  # type: ignore[override]
        return super().load_state_dict(state, strict)


class Stateful(nn.Linear):
    def get_extra_state(self) -> Any:
        return 1

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Doubles(nn.Linear):
    def load_state_dict(self, state: Any, *args: Any, **options: Any) -> Any:
        return super().load_state_dict({name: 2 * value for name, value in state.items()}, *args, **options)


def own_methods(method: str) -> nn.Module:
    """A model whose `method` is of an object, and not of its class."""
    model = nn.Sequential(nn.Linear(3, 3))
    owner = model if method == "load_state_dict" else model[0]

    def doubled(self: nn.Module, state: Any, *args: Any, **options: Any) -> Any:
        theirs = getattr(type(self), method)
        return theirs(self, {name: 2 * value for name, value in state.items()}, *args, **options)

    setattr(owner, method, MethodType(doubled, owner))
    return model


def observer(channels: int | None) -> nn.Module:
    module = nn.Sequential(PerChannelMinMaxObserver())
    if channels:
        module(torch.randn(channels, 4))
    return module


def old_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(weight_norm(nn.Linear(3, 3)))


def norm_state() -> dict[str, Tensor]:
    return {"running_mean": torch.randn(3), "num_batches_tracked": torch.tensor(4)}


KINDS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Tensor]]]] = {
    "checkpoint_wrapper": (
        lambda: nn.Sequential(checkpoint_wrapper(nn.Linear(3, 4)), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).state_dict(),
    ),
    "renamed": (
        lambda: nn.Sequential(Renamed()),
        lambda: {"0.old.weight": torch.randn(3, 3), "0.old.bias": torch.randn(3)},
    ),
    "post hook": (Derived, lambda: Derived().state_dict()),
    "old weight_norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))),
        lambda: old_norm().state_dict(),
    ),
    "frozen norm": (Frozen, norm_state),
    "observer": (lambda: observer(None), lambda: observer(5).state_dict()),
    "load_state_dict": (
        lambda: Overrides(3, 3),
        lambda: {f"module.{n}": t for n, t in nn.Linear(3, 3).state_dict().items()},
    ),
    "load_state_dict that copies": (lambda: Copies(3, 3), lambda: nn.Linear(3, 3).state_dict()),
    "load_state_dict within, which torch passes by": (
        lambda: nn.Sequential(Doubles(3, 3)),
        lambda: nn.Sequential(nn.Linear(3, 3)).state_dict(),
    ),
    **{
        f"an object's {method}": (
            functools.partial(own_methods, method),
            lambda: nn.Sequential(nn.Linear(3, 3)).state_dict(),
        )
        for method in ("load_state_dict", "_load_from_state_dict")
    },
    "extra state": (lambda: Stateful(3, 3), lambda: nn.Linear(3, 3).state_dict()),
    "batch norm of old": (
        lambda: nn.Sequential(nn.BatchNorm1d(3)),
        lambda: {n: t for n, t in nn.Sequential(nn.BatchNorm1d(3)).state_dict().items() if "num" not in n},
    ),
}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        t.dtype == other[n].dtype and torch.equal(t, other[n]) for n, t in one.items()
    )


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_load_gives_what_load_state_dict_gives(kind: str, in_place: bool, path: Path) -> None:
    make, state = KINDS[kind]
    model, tensors = make(), state()
    expected = copy.deepcopy(model)
    pack_to_file(tensors, path)
    if kind == "observer" and in_place:
        with pytest.raises(ValueError, match="in_place=True cannot fill"):
            assign_from_file(model, path, in_place=True)
        assert same(tensors_of(model), tensors_of(expected))
        return
    parameters = dict(model.named_parameters())
    keys = expected.load_state_dict(tensors, strict=False)
    found = assign_from_file(model, path, in_place=in_place)
    assert same(tensors_of(model), tensors_of(expected))
    assert sorted(found.missing_keys) == sorted(keys.missing_keys)
    assert sorted(found.unexpected_keys) == sorted(keys.unexpected_keys)
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    "kind", ["checkpoint_wrapper", "renamed", "load_state_dict", "frozen norm", "batch norm of old"]
)
def test_a_meta_model_gets_what_assign_gives(kind: str, path: Path) -> None:
    make, state = KINDS[kind]
    model, tensors = make(), state()
    expected = copy.deepcopy(model.to("meta"))
    pack_to_file(tensors, path)
    expected.load_state_dict(tensors, strict=False, assign=True)
    assign_from_file(model, path)
    assert same(tensors_of(model), tensors_of(expected))


def test_other_dtypes_are_cast(path: Path) -> None:
    make, state = KINDS["checkpoint_wrapper"]
    tensors = state()
    pack_to_file(tensors, path)
    model = make().half()
    expected = copy.deepcopy(model)
    expected.load_state_dict(tensors)
    assign_from_file(model, path, dtype="model")
    assert same(tensors_of(model), tensors_of(expected))


def test_a_copying_load_state_dict_refuses_meta_tensors(path: Path) -> None:
    pack_to_file(nn.Linear(3, 3), path)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="takes no assign=True"):
        warnings.simplefilter("ignore")
        assign_from_file(Copies(3, 3).to("meta"), path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("post hook", "extra state")])
def test_a_refused_load_changes_nothing(kind: str, path: Path) -> None:
    make, state = KINDS[kind]
    model, before = make(), {}
    before = tensors_of(model)
    pack_to_file({**state(), "stranger": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="stranger"):
        assign_from_file(model, path)
    assert same(tensors_of(model), before)


@pytest.mark.parametrize("exact", [True, False])
def test_caches_are_made_anew_once(exact: bool, path: Path) -> None:
    source, model = nn.Sequential(Derived()), nn.Sequential(Derived())
    pack_to_file(source.state_dict() | ({} if exact else {"more": torch.ones(1)}), path)
    assign_from_file(model, path, strict=exact)
    assert torch.equal(model[0].fused, source[0].fused)  # type: ignore[arg-type]
    assert model[0].refreshed == 1


def test_a_wrong_shape_is_a_value_error_and_changes_nothing(path: Path) -> None:
    model = nn.Sequential(Renamed(), observer(None))
    before = tensors_of(model)
    pack_to_file(dict(observer(5).state_dict(prefix="1.")) | {"0.old.weight": torch.ones(4, 3)}, path)
    with pytest.raises(ValueError, match=r"size mismatch for new\.weight"):
        assign_from_file(model, path)
    assert same(tensors_of(model), before)


def test_missing_extra_state_is_refused_by_a_strict_load(path: Path) -> None:
    pack_to_file(nn.Linear(3, 3), path)
    with pytest.raises(ValueError, match="_extra_state"):
        assign_from_file(Stateful(3, 3), path, strict=True)


def test_a_wrapped_module_is_packed_under_its_state_dicts_names(path: Path) -> None:
    model = KINDS["checkpoint_wrapper"][0]()
    pack_to_file(model, path)
    assert same(load_file(path), dict(model.state_dict()))
