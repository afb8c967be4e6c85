"""What modules that load in their own way do to parameters beside giving them values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flashpack import assign_from_file, pack_to_file
from torch import Tensor, nn


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))


class Freezes(Pair):
    def _load_from_state_dict(self, state: Any, prefix: str, *_: Any) -> None:
        self.one = nn.Parameter(state[prefix + "one"], requires_grad=False)
        self.two = nn.Parameter(state[prefix + "two"])


class FreezesItsOwn(Pair):
    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        self.one.requires_grad_(False)


class Trains(Freezes):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Ties(Pair):
    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        self.one = self.two


class TiesACopy(Pair):
    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        keys = super().load_state_dict(state, *args, **kwargs)
        self.two = self.one
        return keys


class TiesReshaped(Pair):
    def _load_from_state_dict(self, state: Any, prefix: str, *_: Any) -> None:
        self.one = self.two = nn.Parameter(state[prefix + "one"].reshape(2, 2))


class Quantizes(Pair):
    def _load_from_state_dict(self, state: Any, prefix: str, *_: Any) -> None:
        self.one = nn.Parameter(state[prefix + "one"].to(torch.int8), requires_grad=False)
        self.two = nn.Parameter(state[prefix + "two"].half())


KINDS = (Freezes, FreezesItsOwn, Trains, Ties, TiesACopy, TiesReshaped, Quantizes)
STATE = {"one": torch.arange(4.0), "two": torch.arange(4.0) + 7}


def told(model: Pair) -> tuple[bool, bool, bool, list[Tensor]]:
    values = [model.one.detach(), model.two.detach()]
    return model.one is model.two, model.one.requires_grad, model.two.requires_grad, values


def assert_same(model: Pair, expected: Pair) -> None:
    *flags, values = told(model)
    *expected_flags, expected_values = told(expected)
    assert flags == expected_flags
    assert all(map(torch.equal, values, expected_values))
    assert [value.dtype for value in values] == [value.dtype for value in expected_values]


LOADS = [
    (kind, options, meta) for kind in KINDS for options in ({}, {"eager": True}) for meta in (False, True)
]
FILLED = [(kind, {"in_place": True}, False) for kind in KINDS if kind not in (TiesReshaped, Quantizes)]


@pytest.mark.parametrize("compress", [None, "fast"])
@pytest.mark.parametrize(("kind", "options", "meta"), LOADS + FILLED)
def test_parameters_become_what_load_state_dict_makes_of_them(
    kind: type[Pair], options: dict[str, Any], meta: bool, compress: str | None, path: Path
) -> None:
    device = "meta" if meta else "cpu"
    model, expected = kind().to(device), kind().to(device)
    pack_to_file(STATE, path, compress=compress)
    expected.load_state_dict({name: tensor.clone() for name, tensor in STATE.items()}, assign=meta)
    assert assign_from_file(model, path, strict=True, **options) == ([], [])
    assert_same(model, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_load_leaves_them_as_they_were(kind: type[Pair], path: Path) -> None:
    model = nn.Sequential(kind(), nn.Linear(2, 2))
    before = dict(model.named_parameters())
    flags = [parameter.requires_grad for parameter in before.values()]
    pack_to_file({f"0.{name}": tensor for name, tensor in STATE.items()}, path)
    with pytest.raises(ValueError, match=r"1\.weight"):
        assign_from_file(model, path)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    assert [parameter.requires_grad for parameter in after.values()] == flags
