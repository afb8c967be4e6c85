"""Tensors of a model that share memory without being one object still do after a load, as with torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack import assign_from_file
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn


class Model(nn.Module):
    """`embed` and `other`, which `share` may lay into one memory, beside a layer of its own."""

    def __init__(self, share: Callable[[Model], None]) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.rand(4, 4))
        self.other = nn.Parameter(torch.rand(4, 4))
        self.layer = nn.Linear(3, 2)
        share(self)


def tied(model: Model) -> None:
    model.other.data = model.embed.data


def tied_flat(model: Model) -> None:
    model.other = nn.Parameter(model.embed.data.view(16))


def tied_transposed(model: Model) -> None:
    model.other.data = model.embed.data.T


def part(model: Model) -> None:
    model.other = nn.Parameter(model.embed.data[1:3])


def columns(model: Model) -> None:
    whole = model.embed.data
    model.embed, model.other = nn.Parameter(whole[:, :3]), nn.Parameter(whole[:, 2:])


def tied_to_a_buffer(model: Model) -> None:
    model.register_buffer("cache", model.embed.data, persistent=False)


def part_in_a_buffer(model: Model) -> None:
    model.register_buffer("cache", model.embed.data[1:], persistent=False)


def spread_in_a_buffer(model: Model) -> None:
    model.register_buffer("cache", model.embed.data[0].expand(5, 4), persistent=False)


WHOLE = (tied, tied_flat, tied_to_a_buffer)
IN_PART = (tied_transposed, part, columns, part_in_a_buffer, spread_in_a_buffer)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"eager": True},
    {"strict": False},
    {"coerce_dtype": True},
    {"dtype": "model"},
    {"ignore_names": ["layer.bias"]},
)


def every_tensor(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def assert_the_same_by_every_write(one: nn.Module, other: nn.Module) -> None:
    """The same values now, and after each tensor has been filled in turn."""
    ones, others = every_tensor(one), every_tensor(other)
    for number, name in enumerate((None, *ones)):
        for tensors in (ones, others):
            if name is not None and tensors[name].stride(0):
                tensors[name].detach().fill_(number)
        assert all(torch.equal(ones[key], others[key]) for key in ones), name


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("share", [*WHOLE, *IN_PART])
def test_values_and_sharing_are_those_of_load_state_dict(
    share: Callable[[Model], None], options: dict[str, Any], tmp_path: Path
) -> None:
    state = Model(share).state_dict()
    flashpack.save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "m.flashpack")
    expected, model = Model(share), Model(share)
    parameters = every_tensor(model)
    if "ignore_names" in options:
        expected.layer.bias.data = model.layer.bias.data.clone()
        del state["layer.bias"]
    expected.load_state_dict(state, strict=False)
    keys = assign_from_file(model, tmp_path / "m.flashpack", **options)
    assert keys == ([], [])
    assert all(parameters[name] is tensor for name, tensor in model.named_parameters())
    assert_the_same_by_every_write(model, expected)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_the_name_that_safetensors_leaves_out_is_not_missed(
    strict: bool, in_place: bool, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(Model(tied), path)
    assert set(load_file(path)) == {"embed", "layer.weight", "layer.bias"}
    expected, model = Model(tied), Model(tied)
    load_model(expected, path)
    assert assign_from_file(model, path, strict=strict, in_place=in_place) == ([], [])
    assert_the_same_by_every_write(model, expected)


def test_what_shares_memory_with_a_name_that_is_missing(tmp_path: Path) -> None:
    """Which torch tells as missing, and changes all the same."""
    state = {name: tensor for name, tensor in Model(part).state_dict().items() if name != "other"}
    flashpack.save_file(state, tmp_path / "m.flashpack")
    expected, model = Model(part), Model(part)
    keys = assign_from_file(model, tmp_path / "m.flashpack", strict=False)
    assert keys == expected.load_state_dict(state, strict=False) == (["other"], [])
    assert_the_same_by_every_write(model, expected)


@pytest.mark.parametrize("in_place", [False, True])
def test_records_that_differ_for_one_memory(in_place: bool, tmp_path: Path) -> None:
    state = Model(lambda _: None).state_dict()
    flashpack.save_file(state, tmp_path / "m.flashpack")
    model = Model(tied)
    before = model.embed.detach().clone()
    with pytest.raises(ValueError, match=r"one tensor under the names \['embed', 'other'\]"):
        assign_from_file(model, tmp_path / "m.flashpack", in_place=in_place)
    assert torch.equal(model.embed, before)
    with pytest.warns(UserWarning, match="the last one is taken"):
        assign_from_file(model, tmp_path / "m.flashpack", in_place=in_place, strict=False)
    assert torch.equal(model.embed, state["other"])
    assert model.embed.data_ptr() == model.other.data_ptr()


@pytest.mark.parametrize("share", [part, columns, tied_transposed])
def test_records_that_differ_where_memory_is_shared_in_part(
    share: Callable[[Model], None], tmp_path: Path
) -> None:
    state = {name: torch.rand_like(tensor) for name, tensor in Model(share).state_dict().items()}
    flashpack.save_file(state, tmp_path / "m.flashpack")
    model = Model(share)
    before = {name: tensor.clone() for name, tensor in every_tensor(model).items()}
    with pytest.raises(ValueError, match=r"'other'\] of the model share .* overwrite some of \['embed'\]"):
        assign_from_file(model, tmp_path / "m.flashpack")
    assert all(torch.equal(tensor, before[name]) for name, tensor in every_tensor(model).items())
    expected = Model(share)
    expected.load_state_dict(state)
    with pytest.warns(UserWarning, match="the last one is taken"):
        assign_from_file(model, tmp_path / "m.flashpack", strict=False)
    assert_the_same_by_every_write(model, expected)


def test_the_last_name_of_a_memory_is_written_last(tmp_path: Path) -> None:
    def share(model: Model) -> None:
        part(model)
        model.third = nn.Parameter(model.embed.data)

    state = {name: torch.rand_like(tensor) for name, tensor in Model(share).state_dict().items()}
    flashpack.save_file(state, tmp_path / "m.flashpack")
    model, expected = Model(share), Model(share)
    expected.load_state_dict(state)
    with pytest.warns(UserWarning, match="the last one is taken"):
        assign_from_file(model, tmp_path / "m.flashpack", strict=False)
    assert torch.equal(model.embed, state["third"])
    assert_the_same_by_every_write(model, expected)


@pytest.mark.parametrize("share", WHOLE)
def test_one_memory_takes_the_dtype_of_the_file(share: Callable[[Model], None], tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in Model(share).state_dict().items()}
    flashpack.save_file(state, tmp_path / "m.flashpack")
    model = Model(share)
    names = [
        name for name, tensor in every_tensor(model).items() if tensor.data_ptr() == model.embed.data_ptr()
    ]
    assert len(names) == 2
    assign_from_file(model, tmp_path / "m.flashpack")
    first, second = (every_tensor(model)[name] for name in names)
    assert first.dtype == second.dtype == torch.bfloat16
    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(first.flatten(), state["embed"].flatten())


@pytest.mark.parametrize("share", IN_PART)
def test_a_part_of_a_memory_cannot_change_its_dtype(share: Callable[[Model], None], tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in Model(share).state_dict().items()}
    flashpack.save_file(state, tmp_path / "m.flashpack")
    model = Model(share)
    before = {name: tensor.clone() for name, tensor in every_tensor(model).items()}
    with pytest.raises(
        ValueError,
        match=r"m\.flashpack.*'embed' is torch.bfloat16 on cpu, .* shares a part",
    ):
        assign_from_file(model, tmp_path / "m.flashpack")
    assert all(torch.equal(tensor, before[name]) for name, tensor in every_tensor(model).items())
    expected = Model(share)
    expected.load_state_dict(state)
    assign_from_file(model, tmp_path / "m.flashpack", dtype="model")
    assert_the_same_by_every_write(model, expected)


def test_an_expanded_part_of_a_memory_is_refused_as_by_torch(tmp_path: Path) -> None:
    def share(model: Model) -> None:
        model.register_buffer("cache", model.embed.data[0].expand(5, 4))

    state = {name: tensor.clone() for name, tensor in Model(share).state_dict().items()}
    flashpack.save_file(state, tmp_path / "m.flashpack")
    with pytest.raises(RuntimeError, match="single memory location"):
        Model(share).load_state_dict(state)
    model = Model(share)
    before = {name: tensor.clone() for name, tensor in every_tensor(model).items()}
    with pytest.raises(
        ValueError, match=r"m\.flashpack.*'cache' cannot be assigned: .* clone the tensor first"
    ):
        assign_from_file(model, tmp_path / "m.flashpack")
    assert all(torch.equal(tensor, before[name]) for name, tensor in every_tensor(model).items())


def test_tensors_beside_each_other_in_one_storage_get_memory_of_their_own(tmp_path: Path) -> None:
    """As those of models that were loaded in blocks, or that flatten their weights."""

    def beside(model: Model) -> None:
        whole = torch.rand(8, 4)
        model.embed, model.other = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])

    state = {name: tensor.bfloat16() for name, tensor in Model(beside).state_dict().items()}
    flashpack.save_file(state, tmp_path / "m.flashpack")
    model = Model(beside)
    assign_from_file(model, tmp_path / "m.flashpack")
    assert all(torch.equal(tensor, state[name]) for name, tensor in every_tensor(model).items())


def test_modules_that_load_in_their_own_way_stay_tied(tmp_path: Path) -> None:
    def share(model: Model) -> None:
        tied(model)
        model.register_load_state_dict_pre_hook(lambda _, state, *__: state["embed"].mul_(2))

    state = {"embed": torch.ones(4, 4), **Model(tied).layer.state_dict(prefix="layer.")}
    flashpack.save_file(state, tmp_path / "m.flashpack")
    model = Model(share)
    assign_from_file(model, tmp_path / "m.flashpack", strict=False)
    assert torch.equal(model.other, torch.full((4, 4), 2.0))
    assert model.embed.data_ptr() == model.other.data_ptr()
