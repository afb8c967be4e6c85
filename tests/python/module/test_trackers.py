"""Modules that keep their parameters in a second place: it follows when a load replaces them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack import FlashPackMixin
from torch import Tensor, nn

X = torch.randn(4, 2, 5)


class Recurrent(nn.Module, FlashPackMixin):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 7, num_layers=2, bidirectional=True)
        self.gru = nn.GRU(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gru(self.lstm(x)[0])[0]
        return out


class Tracking(nn.Module):
    """Notes every parameter that it is given, and computes with what it noted."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "noted", {})
        self.weight = nn.Parameter(torch.randn(3))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Parameter):
            self.noted[name] = value


class Listing(nn.Module, FlashPackMixin):
    """Puts a parameter into a list before, and another after, it is registered."""

    def __init__(self) -> None:
        super().__init__()
        early, self.late = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        self.early = early
        self.list = [early, self.late]


def on_meta(path: Path) -> Recurrent:
    with torch.device("meta"):
        model = Recurrent()
    flashpack.assign_from_file(model, path)
    return model


def by_mixin(path: Path) -> Recurrent:
    return Recurrent.from_flashpack(path, silent=True)


def into_live(path: Path) -> Recurrent:
    model = Recurrent()
    flashpack.assign_from_file(model, path)
    return model


def scripted(model: Recurrent) -> Tensor:
    out: Tensor = torch.jit.script(model)(X)
    return out


def traced(model: Recurrent) -> Tensor:
    out: Tensor = torch.jit.trace(model, X)(X)
    return out


def copied(model: Recurrent) -> Tensor:
    out: Tensor = copy.deepcopy(model)(X)
    return out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("use", [Recurrent.forward, copied, scripted, traced])
@pytest.mark.parametrize("load", [on_meta, by_mixin, into_live])
def test_flat_weights_of_rnns_are_the_loaded_ones(
    load: Callable[[Path], Recurrent], use: Callable[..., Tensor], path: Path
) -> None:
    source = Recurrent().eval()
    flashpack.pack_to_file(source, path)
    model = load(path).eval()
    for rnn in (model.lstm, model.gru):
        for name, weight in zip(rnn._flat_weights_names, rnn._flat_weights, strict=True):
            assert weight is getattr(rnn, name)
    result = use(model, X) if use is Recurrent.forward else use(model)
    assert torch.equal(result, source(X))


def test_a_class_that_notes_what_it_is_given_notes_what_was_loaded(path: Path) -> None:
    source = Tracking()
    flashpack.pack_to_file(source, path)
    with torch.device("meta"):
        model = Tracking()
    flashpack.assign_from_file(model, path)
    assert model.noted["weight"] is model.weight
    assert torch.equal(model.weight, source.weight)


def test_a_parameter_listed_before_it_is_registered_is_loaded_in_the_list(path: Path) -> None:
    source = Listing()
    flashpack.pack_to_file(source, path)
    model = Listing.from_flashpack(path, silent=True)
    assert model.list[0] is model.early
    assert model.list[1] is model.late
    assert torch.equal(model.list[0], source.early)
