"""Loading into the memory that a model has: `in_place=True` and the op behind its fast path."""

from __future__ import annotations

from pathlib import Path

import flashpack
import flashpack.ops
import pytest
import torch
from helpers import assert_same, bits, flip_byte, noise, place_of
from torch import Tensor, nn

ops = torch.ops.flashpack


class Many(nn.Module):
    """Parameters of many sizes: most are read together, the large one by itself."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for number in range(700):
            shape = (number % 40, 3) if number % 7 else ()
            self.register_parameter(f"p{number}", nn.Parameter(torch.randn(shape, generator=generator)))
        self.large = nn.Parameter(torch.randn(700, 1000, generator=generator))
        self.register_buffer("steps", torch.arange(seed, seed + 9))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "many.flashpack"
    flashpack.pack_to_file(Many(1), path)
    return path


def addresses(model: nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("verify", [False, True])
def test_many_small_parameters_keep_their_memory(path: Path, verify: bool) -> None:
    model = Many(2)
    before = addresses(model)
    flashpack.assign_from_file(model, path, in_place=True, verify=verify)
    assert_same(model.state_dict(), Many(1).state_dict())
    assert addresses(model) == before


@pytest.mark.parametrize("name", ["p1", "p350", "large", "steps"])
def test_damage_anywhere_is_noticed(name: str, path: Path) -> None:
    flip_byte(path, place_of(path, name)[0])
    with pytest.raises(flashpack.ChecksumError, match="is damaged"):
        flashpack.assign_from_file(Many(2), path, in_place=True)


def test_filling_all_where_all_fits(path: Path) -> None:
    given = {name: tensor.clone() for name, tensor in Many(2).state_dict().items()}
    assert ops.fill.all(ops.open(str(path)), "\0".join(given), list(given.values()))[0]
    assert_same(given, Many(1).state_dict())


def changed(given: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    given = dict(given)
    match how:
        case "a name less":
            del given["large"]
        case "a name more":
            given["more"] = torch.zeros(2)
        case "another name":
            given["other"] = given.pop("large")
        case "another shape":
            given["large"] = torch.zeros(1000, 700)
        case "another dtype":
            given["large"] = torch.zeros(700, 1000, dtype=torch.int32)
        case "strided":
            given["large"] = torch.zeros(1000, 700).t()
        case "sparse":
            given["large"] = torch.zeros(700, 1000).to_sparse()
    return given


@pytest.mark.parametrize(
    "how",
    ["a name less", "a name more", "another name", "another shape", "another dtype", "strided", "sparse"],
)
def test_filling_all_changes_nothing_where_something_does_not_fit(how: str, path: Path) -> None:
    given = changed({name: tensor.clone() for name, tensor in Many(2).state_dict().items()}, how)
    before = {name: bits(tensor.to_dense()) for name, tensor in given.items()}
    assert not ops.fill.all(ops.open(str(path)), "\0".join(given), list(given.values()))[0]
    assert {name: bits(tensor.to_dense()) for name, tensor in given.items()} == before


def test_filling_all_leaves_tied_records_to_the_general_case(tmp_path: Path) -> None:
    path, tied = tmp_path / "tied.flashpack", noise(torch.float32, (4, 4))
    flashpack.save_file({"one": tied, "other": tied}, path)
    given = {"one": torch.zeros(4, 4), "other": torch.zeros(4, 4)}
    assert not ops.fill.all(ops.open(str(path)), "\0".join(given), list(given.values()))[0]
    model = nn.ParameterDict(given)
    flashpack.assign_from_file(model, path, in_place=True)
    assert_same(model.state_dict(), {"one": tied, "other": tied})


def test_tied_records_of_other_shapes_fill_memory_of_their_own(tmp_path: Path) -> None:
    path, weight = tmp_path / "tied.flashpack", noise(torch.float32, (4, 6))
    tied = {"one": weight, "flat": weight.view(-1), "other": weight.view(6, 4)}
    flashpack.save_file(tied, path)
    model = nn.ParameterDict({name: torch.zeros_like(tensor) for name, tensor in tied.items()})
    before = addresses(model)
    flashpack.assign_from_file(model, path, in_place=True)
    assert_same(model.state_dict(), tied)
    assert addresses(model) == before


def test_tensors_tied_in_memory_take_records_that_are_tied_in_the_file(tmp_path: Path) -> None:
    path, weight = tmp_path / "tied.flashpack", noise(torch.float32, (4, 6))
    flashpack.save_file({"one": weight, "flat": weight.view(-1)}, path)
    held = torch.zeros(4, 6)
    model = nn.ParameterDict({"one": held, "flat": held.view(-1)})
    flashpack.assign_from_file(model, path, in_place=True)
    assert bits(held) == bits(weight)


@pytest.mark.parametrize("tied", [False, True])
def test_memory_shared_otherwise_than_in_the_file_is_refused(tied: bool, tmp_path: Path) -> None:
    path, weight = tmp_path / "two.flashpack", noise(torch.float32, (4, 6))
    flashpack.save_file({"one": weight, "other": weight if tied else weight.clone()}, path)
    memory = torch.zeros(48)
    given = [memory[:24].view(4, 6), memory[6:30].view(4, 6)]
    with pytest.raises(RuntimeError, match="two of the tensors given share memory, but not in the file"):
        ops.fill(ops.open(str(path)), ["one", "other"], given)
    assert not memory.any()
