"""in_place=True: memory that cannot take a file's bytes is refused before the first byte, or filled right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from helpers import assert_same, bits
from torch import Tensor, nn


class Model(nn.Module):
    """Tensors of one value; `odd` is another one in each test."""

    def __init__(self, value: float, odd: Tensor | None = None) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.full((3, 3), value))
        self.register_buffer("odd", torch.full((4, 6), value) if odd is None else odd)
        self.last = nn.Parameter(torch.full((5,), value))


def freed() -> Tensor:
    tensor = torch.zeros(4, 6)
    tensor.untyped_storage().resize_(0)
    return tensor


def complex_view() -> Tensor:
    return torch.zeros(4, 6, dtype=torch.complex64).conj().imag


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "expanded rows": (lambda: torch.zeros(1, 6).expand(4, 6), "share memory"),
    "expanded columns": (lambda: torch.zeros(4, 1).expand(4, 6), "share memory"),
    "a sliding window": (lambda: torch.zeros(9).unfold(0, 6, 1), "share memory"),
    "sparse": (lambda: torch.zeros(4, 6).to_sparse(), "layout is torch.sparse_coo"),
    "compressed": (lambda: torch.zeros(4, 6).to_sparse_csr(), "layout is torch.sparse_csr"),
    "freed": (freed, "its storage was freed"),
    "on the meta device": (lambda: torch.zeros(4, 6, device="meta"), "the model's tensor is on meta"),
    "of another dtype": (lambda: torch.zeros(4, 6).double(), "dtype mismatch"),
    "of another shape": (lambda: torch.zeros(6, 4), "has shape"),
    "lazy": (lambda: nn.parameter.UninitializedBuffer(), "has no memory yet"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.flashpack"
    flashpack.pack_to_file(Model(2.0), path)
    return path


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_filled_is_refused_before_anything_changes(name: str, path: Path) -> None:
    make, reason = REFUSED[name]
    model = Model(0.0, make())
    with pytest.raises(ValueError, match=reason) as caught:
        flashpack.assign_from_file(model, path, in_place=True)
    assert "'odd'" in str(caught.value)
    assert str(path) in str(caught.value)
    assert not model.first.any()
    assert not model.last.any()


def inference() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(6, 4).t()


FILLED: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.zeros(6, 4).t(),
    "a part of the columns": lambda: torch.zeros(4, 9)[:, 2:8],
    "every other row": lambda: torch.zeros(8, 6)[::2],
    "negated": complex_view,
    "of inference mode": inference,
    "read before": lambda: torch.zeros(4, 6, requires_grad=True) * 1,
}


@pytest.mark.parametrize("name", FILLED)
def test_strided_memory_is_filled_element_by_element(name: str, path: Path) -> None:
    model = Model(0.0, FILLED[name]())
    place, strides = model.odd.data_ptr(), model.odd.stride()
    flashpack.assign_from_file(model, path, in_place=True)
    assert_same(model.state_dict(), Model(2.0).state_dict())
    assert (model.odd.data_ptr(), model.odd.stride()) == (place, strides)


def test_conjugated_memory_gets_conjugates(path: Path) -> None:
    value = torch.randn(3, dtype=torch.complex64)
    flashpack.save_file({"c": value}, path)
    for options in ({"in_place": True}, {}, {"eager": True}):
        model = nn.Module()
        model.register_buffer("c", torch.zeros(3, dtype=torch.complex64).conj())
        flashpack.assign_from_file(model, path, **options)
        assert torch.equal(model.c, value)


def test_parts_of_one_matrix_are_filled_side_by_side(path: Path) -> None:
    values = {"q": torch.randn(4, 2), "k": torch.randn(4, 3), "v": torch.randn(4, 2)}
    flashpack.save_file(values, path)
    fused = torch.zeros(4, 7)
    model = nn.ParameterDict(dict(zip("qkv", fused.split([2, 3, 2], dim=1), strict=True)))
    flashpack.assign_from_file(model, path, in_place=True)
    assert_same({"": fused}, {"": torch.cat([values["q"], values["k"], values["v"]], 1)})


OVERLAPS: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "in a row": lambda memory: {"a": memory[0:12].view(3, 4), "b": memory[6:18].view(3, 4)},
    "in a column": lambda memory: {"a": memory.view(3, 8)[:, :4], "b": memory.view(3, 8)[:, 3:7]},
    "one inside of the other": lambda memory: {"a": memory[:12].view(3, 4), "b": memory.view(3, 8)[:, 4:]},
    "turned": lambda memory: {"a": memory[:12].view(3, 4), "b": memory[:12].view(4, 3).t()},
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_two_tensors_that_overlap_are_refused(name: str, path: Path) -> None:
    value = torch.ones(3, 4)
    flashpack.save_file({"a": value, "b": value, "z": torch.ones(2)}, path)
    memory = torch.zeros(24)
    model = nn.ParameterDict({**OVERLAPS[name](memory), "z": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*they share memory in part"):
        flashpack.assign_from_file(model, path, in_place=True)
    assert not memory.any()
    assert not model["z"].any()


@pytest.mark.parametrize("strided", [False, True])
def test_tensors_on_the_same_memory_must_have_the_same_values(strided: bool, path: Path) -> None:
    held = torch.zeros(4, 3).t() if strided else torch.zeros(3, 4)
    model = nn.ParameterDict({"a": nn.Parameter(held), "b": nn.Parameter(held)})
    value = torch.randn(3, 4)
    flashpack.save_file({"a": value, "b": value + 1}, path)
    with pytest.raises(ValueError, match="different values for 'a'"):
        flashpack.assign_from_file(model, path, in_place=True)
    assert not held.any()
    with pytest.warns(UserWarning, match="the last one is taken"):
        flashpack.assign_from_file(model, path, in_place=True, strict=False)
    assert bits(held) == bits(value + 1)
    flashpack.save_file({"a": value, "b": value.clone()}, path)
    flashpack.assign_from_file(model, path, in_place=True)
    assert bits(held) == bits(value)
