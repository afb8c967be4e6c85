"""assign_from_file into tied, meta and wrapped models."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from helpers import assert_same, bits, place_of
from small_model import Small, snapshot
from torch import Tensor, nn

BOTH = pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])


@pytest.fixture
def source() -> Small:
    torch.manual_seed(1)
    return Small()


@pytest.fixture
def packed(source: Small, path: Path) -> Path:
    flashpack.pack_to_file(source, path)
    return path


@pytest.fixture
def model() -> Small:
    torch.manual_seed(2)
    return Small()


# Ties


class Pair(nn.Module):
    """Two matrices, tied or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight


@BOTH
@pytest.mark.parametrize("meta", [False, True], ids=["live", "meta"])
@pytest.mark.parametrize("file_tied", [False, True], ids=["untied file", "tied file"])
def test_a_tied_model_stays_tied(file_tied: bool, meta: bool, eager: bool, path: Path) -> None:
    weight = torch.randn(5, 3)
    flashpack.save_file(
        {"embed.weight": weight, "head.weight": weight if file_tied else weight.clone()}, path
    )
    with torch.device("meta" if meta else "cpu"):
        model = Pair(tied=True)
    flashpack.assign_from_file(model, path, eager=eager)
    assert model.head.weight is model.embed.weight
    assert bits(model.head.weight) == bits(weight)


@pytest.mark.parametrize("meta", [False, True], ids=["live", "meta"])
@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_one_name_of_a_tied_pair_is_enough(name: str, meta: bool, path: Path) -> None:
    weight = torch.randn(5, 3)
    flashpack.save_file({name: weight}, path)
    with torch.device("meta" if meta else "cpu"):
        model = Pair(tied=True)
    flashpack.assign_from_file(model, path, strict=True)
    assert model.head.weight is model.embed.weight
    assert bits(model.embed.weight) == bits(weight)


ROADS: dict[str, dict[str, Any]] = {
    "mapped": {},
    "eager": {"eager": True},
    "in place": {"in_place": True},
    "with blocks": {"keep_flash_ref_on_model": True},
    "some ignored": {"ignore_names": ["none"]},
}


@pytest.fixture
def differing(path: Path) -> dict[str, Tensor]:
    """Two values for a tied pair, the names in another order than the model's."""
    tensors = {"head.weight": torch.randn(5, 3), "embed.weight": torch.randn(5, 3)}
    flashpack.save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("options", [{}, {"strict": True}, {"strict_params": False, "strict_buffers": True}])
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.usefixtures("differing")
def test_different_values_for_one_tied_parameter_are_refused(
    road: str, options: dict[str, Any], path: Path
) -> None:
    model = Pair(tied=True)
    kept = snapshot(model)
    said = r"under the names \['embed.weight', 'head.weight'\], but the file has different values for"
    with pytest.raises(ValueError, match=said) as caught:
        flashpack.assign_from_file(model, path, **ROADS[road], **options)
    assert str(path) in str(caught.value)
    assert snapshot(model) == kept


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.usefixtures("differing")
def test_different_values_for_one_tied_meta_parameter_are_refused(eager: bool, path: Path) -> None:
    with torch.device("meta"):
        model = Pair(tied=True)
    with pytest.raises(ValueError, match="different values for"):
        flashpack.assign_from_file(model, path, eager=eager)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("options", [{"strict": False}, {"strict_params": False}])
@pytest.mark.parametrize("road", ROADS)
def test_a_lenient_load_warns_of_them_and_takes_what_load_state_dict_does(
    road: str, options: dict[str, Any], differing: dict[str, Tensor], path: Path
) -> None:
    model, other = Pair(tied=True), Pair(tied=True)
    with pytest.warns(UserWarning, match="different values for 'embed.weight'.*the last one is taken"):
        flashpack.assign_from_file(model, path, **ROADS[road], **options)
    other.load_state_dict(differing)
    assert bits(model.embed.weight) == bits(other.embed.weight) == bits(differing["head.weight"])
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("value", [float("nan"), -0.0])
@pytest.mark.parametrize("road", ROADS)
def test_equal_values_are_compared_by_their_bytes(road: str, value: float, path: Path) -> None:
    weight = torch.full((5, 3), value)
    flashpack.save_file({"embed.weight": weight, "head.weight": weight.clone()}, path)
    model = Pair(tied=True)
    flashpack.assign_from_file(model, path, **ROADS[road])
    assert bits(model.head.weight) == bits(weight)
    flashpack.save_file({"embed.weight": weight, "head.weight": weight.nan_to_num(1).abs()}, path)
    with pytest.raises(ValueError, match="different values"):
        flashpack.assign_from_file(model, path, **ROADS[road])


def test_different_values_for_one_scalar_buffer_are_refused(path: Path) -> None:
    model, step = nn.Module(), torch.tensor(0)
    model.register_buffer("one", step)
    model.register_buffer("two", step)
    flashpack.save_file({"one": torch.tensor(1), "two": torch.tensor(2)}, path)
    with pytest.raises(ValueError, match=r"'two'"):
        flashpack.assign_from_file(model, path)
    assert int(model.one) == 0


@BOTH
def test_distinct_live_parameters_stay_independent(eager: bool, path: Path) -> None:
    flashpack.pack_to_file(Pair(tied=True), path)
    model = Pair(tied=False)
    flashpack.assign_from_file(model, path, eager=eager)
    assert model.head.weight is not model.embed.weight
    assert bits(model.head.weight) == bits(model.embed.weight)
    with torch.no_grad():
        model.head.weight.zero_()
    assert model.embed.weight.any()


def test_an_untied_meta_model_is_tied_as_the_file_is(path: Path) -> None:
    flashpack.pack_to_file(Pair(tied=True), path)
    with torch.device("meta"):
        model = Pair(tied=False)
    flashpack.assign_from_file(model, path)
    assert model.head.weight is model.embed.weight


def test_meta_parameters_that_differ_in_kind_are_not_tied(path: Path) -> None:
    flashpack.pack_to_file(Pair(tied=True), path)
    with torch.device("meta"):
        model = Pair(tied=False)
    model.embed.weight.requires_grad_(False)
    flashpack.assign_from_file(model, path)
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True]
    with torch.no_grad():
        model.head.weight.zero_()
    assert model.embed.weight.any()


def test_a_tied_model_packs_once_and_comes_back_tied(path: Path) -> None:
    flashpack.pack_to_file(Pair(tied=True), path)
    assert place_of(path, "embed.weight") == place_of(path, "head.weight")
    model = Pair(tied=True)
    flashpack.assign_from_file(model, path)
    flashpack.pack_to_file(model, path)
    assert place_of(path, "embed.weight") == place_of(path, "head.weight")


@pytest.mark.parametrize("meta", [False, True], ids=["live", "meta"])
def test_tied_buffers_stay_tied(meta: bool, path: Path) -> None:
    with torch.device("meta" if meta else "cpu"):
        model = nn.Module()
        table = torch.zeros(3)
        model.register_buffer("one", table)
        model.register_buffer("two", table)
    flashpack.save_file({"one": torch.ones(3), "two": torch.ones(3)}, path)
    flashpack.assign_from_file(model, path)
    assert model.one is model.two
    assert model.one.eq(1).all()


def test_a_module_under_two_names(path: Path) -> None:
    layer = nn.Linear(2, 2)
    source = nn.Sequential(layer, nn.ReLU(), layer)
    flashpack.pack_to_file(source, path)
    assert set(flashpack.load_file(path)) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    flashpack.assign_from_file(model, path, strict=True)
    assert_same(model.state_dict(), source.state_dict())
    assert model[0] is model[2]
    with torch.device("meta"):
        shared = nn.Linear(2, 2)
        model = nn.Sequential(shared, nn.ReLU(), shared)
    flashpack.assign_from_file(model, path, strict=True)
    assert model[0].weight is model[2].weight
    assert_same(model.state_dict(), source.state_dict())


# Meta models


@BOTH
def test_a_meta_model_becomes_real(eager: bool, packed: Path, source: Small) -> None:
    with torch.device("meta"):
        model = Small()
    flashpack.assign_from_file(model, packed, eager=eager)
    assert_same(model.state_dict(), source.state_dict())
    assert model.cache.is_meta  # the file does not have it
    assert model.head.weight is model.embed.weight
    assert not model.frozen.requires_grad
    parameters = dict(model.named_parameters())
    assert all(type(parameter) is nn.Parameter and parameter.is_leaf for parameter in parameters.values())
    model(torch.tensor([0, 1])).sum().backward()
    assert {name for name, parameter in parameters.items() if parameter.grad is not None} == {
        name for name in parameters if name != "frozen"
    }


def move_to_meta(model: nn.Module) -> None:
    """What accelerate's init_empty_weights leaves: each parameter by itself on meta, ties broken."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def test_ties_that_an_empty_initialisation_broke_are_mended(
    packed: Path, source: Small, model: Small
) -> None:
    move_to_meta(model)
    assert model.head.weight is not model.embed.weight
    flashpack.assign_from_file(model, packed)
    assert model.head.weight is model.embed.weight
    assert_same(model.state_dict(), source.state_dict())
    assert not model.frozen.requires_grad


def test_a_partly_meta_model(packed: Path, source: Small, model: Small) -> None:
    live = model.frozen
    move_to_meta(model.body)
    flashpack.assign_from_file(model, packed)
    assert_same(model.state_dict(), source.state_dict())
    assert model.frozen is live
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_attributes_of_meta_parameters_are_kept(packed: Path) -> None:
    with torch.device("meta"):
        model = Small()
    model.frozen.shard = "first"
    flashpack.assign_from_file(model, packed)
    assert model.frozen.shard == "first"


class Special(nn.Parameter):
    """A parameter class of somebody's own."""


def test_the_class_of_a_parameter_is_kept(path: Path) -> None:
    flashpack.save_file({"weight": torch.ones(2)}, path)
    for device in ("cpu", "meta"):
        model = nn.Module()
        model.weight = Special(torch.zeros(2, device=device))
        flashpack.assign_from_file(model, path)
        assert type(model.weight) is Special
        assert model.weight.eq(1).all()


def test_a_target_of_meta_means_the_cpu(packed: Path, source: Small) -> None:
    with torch.device("meta"):
        model = Small()
    flashpack.assign_from_file(model, packed, device="meta")
    assert_same(model.state_dict(), source.state_dict())


# Wrappers


def test_a_data_parallel_wrapper_prefixes_its_names(path: Path) -> None:
    source = nn.DataParallel(nn.Linear(2, 2))
    flashpack.pack_to_file(source, path)
    assert set(flashpack.load_file(path)) == {"module.weight", "module.bias"}
    model = nn.DataParallel(nn.Linear(2, 2))
    flashpack.assign_from_file(model, path)
    assert_same(model.state_dict(), source.state_dict())
    with pytest.raises(ValueError, match="Could not assign 2 names"):
        flashpack.assign_from_file(nn.Linear(2, 2), path)


def test_a_compiled_wrapper_prefixes_its_names(path: Path) -> None:
    source = nn.Linear(2, 2)
    compiled = torch.compile(source, backend="eager")
    flashpack.pack_to_file(compiled, path)
    assert set(flashpack.load_file(path)) == {"_orig_mod.weight", "_orig_mod.bias"}
    model = nn.Linear(2, 2)
    flashpack.assign_from_file(torch.compile(model, backend="eager"), path)
    assert_same(model.state_dict(), source.state_dict())


def test_a_compiled_model_computes_with_what_was_assigned(path: Path) -> None:
    source, model = nn.Linear(4, 4), nn.Linear(4, 4)
    flashpack.pack_to_file(source, path)
    compiled = torch.compile(model, backend="aot_eager")
    inputs = torch.randn(2, 4)
    compiled(inputs)
    flashpack.assign_from_file(model, path)
    assert torch.equal(compiled(inputs), source(inputs))


def test_parametrized_modules(path: Path) -> None:
    def build() -> nn.Linear:
        return nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

    source, model = build(), build()
    flashpack.pack_to_file(source, path)
    flashpack.assign_from_file(model, path)
    assert_same(model.state_dict(), source.state_dict())
    assert torch.equal(model.weight, source.weight)


def test_a_distributed_load_by_one_rank_is_an_ordinary_one(packed: Path, source: Small, model: Small) -> None:
    flashpack.assign_from_file(model, packed, use_distributed_loading=True, world_size=1, rank=0)
    assert_same(model.state_dict(), source.state_dict())


@pytest.mark.parametrize("in_place", [False, True], ids=["swapped", "filled"])
def test_a_graph_that_saved_the_old_values_notices(in_place: bool, path: Path) -> None:
    model = nn.Linear(3, 2)
    flashpack.save_file(model, path)
    inputs = torch.ones(1, 3, requires_grad=True)
    before = model(inputs).sum()
    flashpack.assign_from_file(model, path, in_place=in_place)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward()
    model(inputs).sum().backward()
    assert model.weight.grad is not None


def test_meta_parameters_stay_the_same_objects(path: Path) -> None:
    flashpack.save_file(nn.Linear(3, 2), path)
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    weight, bias = model.weight, model.bias
    optimizer = torch.optim.SGD([weight], lr=1.0)
    flashpack.assign_from_file(model, path)
    assert (model.weight is weight, model.bias is bias) == (True, True)
    assert (weight.requires_grad, bias.requires_grad, weight.is_meta) == (True, False, False)
    old = weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, old - 1)


def test_a_meta_parameter_with_a_weak_reference_is_replaced(path: Path) -> None:
    flashpack.save_file({"weight": torch.ones(2, 3)}, path)
    model = nn.Linear(3, 2, bias=False, device="meta")
    old = model.weight
    reference = weakref.ref(old)
    flashpack.assign_from_file(model, path)
    assert reference() is old
    assert old.is_meta
    assert model.weight.eq(1).all()
