"""assign_from_file: which tensor goes where, what stays the same object, and that failure changes nothing."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from helpers import assert_same, bits, noise
from small_model import Small, snapshot, without
from torch import Tensor, nn

BOTH = pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])


def state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything the model holds, non-persistent buffers included."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach().clone() for name, tensor in named}


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


# Live models


@BOTH
def test_a_live_model_takes_the_weights(eager: bool, packed: Path, source: Small, model: Small) -> None:
    cache = model.cache.clone()
    flashpack.assign_from_file(model, packed, eager=eager)
    assert_same(model.state_dict(), source.state_dict())
    assert torch.equal(model.cache, cache)
    tokens = torch.tensor([0, 3, 5])
    assert torch.equal(model.eval()(tokens), source.eval()(tokens))


@BOTH
def test_every_tensor_stays_the_object_it_was(eager: bool, packed: Path, model: Small) -> None:
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    flashpack.assign_from_file(model, packed, eager=eager)
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == before
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(type(parameter) is nn.Parameter and parameter.is_leaf for parameter in model.parameters())
    assert model.head.weight is model.embed.weight


def test_flags_references_and_gradients_stay(packed: Path, model: Small) -> None:
    weight = model.body[0].weight
    weight.grad = torch.full_like(weight, 3)
    weight.tag = "mine"
    reference, seen = weakref.ref(weight), []
    weight.register_hook(seen.append)
    flashpack.assign_from_file(model, packed)
    assert reference() is model.body[0].weight
    assert weight.tag == "mine"
    assert weight.grad is not None
    assert weight.grad.eq(3).all()
    weight.sum().backward()
    assert len(seen) == 1
    assert weight.grad.eq(4).all()


@BOTH
def test_training_goes_on_after_a_load(eager: bool, packed: Path, model: Small) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.tensor([0, 1, 2, 5])).pow(2).sum().backward()
        optimizer.step()

    step()
    on_disk = packed.read_bytes()
    flashpack.assign_from_file(model, packed, eager=eager)
    reference = copy.deepcopy(model)
    before = {name: bits(parameter) for name, parameter in model.named_parameters()}
    step()
    after = {name: bits(parameter) for name, parameter in model.named_parameters()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert packed.read_bytes() == on_disk
    assert_same(flashpack.load_file(packed), {**reference.state_dict()})


def test_plain_gradient_descent_on_mapped_parameters_is_exact(packed: Path, model: Small) -> None:
    twin = copy.deepcopy(model)
    flashpack.assign_from_file(model, packed)
    twin.load_state_dict(flashpack.load_file(packed, eager=True))
    for each in (model, twin):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.5, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            each(torch.tensor([0, 1, 2, 5])).pow(2).mean().backward()
            optimizer.step()
    assert_same(state(model), {**state(twin), "cache": model.cache})


def test_two_models_of_one_file_do_not_share(packed: Path, model: Small) -> None:
    other = copy.deepcopy(model)
    for each in (model, other):
        flashpack.assign_from_file(each, packed)
    with torch.no_grad():
        model.frozen.fill_(9)
    assert not other.frozen.eq(9).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_parameters_take_the_dtype_of_the_file(dtype: torch.dtype, path: Path) -> None:
    tensors = {"weight": noise(dtype, (3, 2)), "bias": noise(dtype, (3,))}
    flashpack.save_file(tensors, path)
    model = nn.Linear(2, 3)
    weight = model.weight
    flashpack.assign_from_file(model, path)
    assert model.weight is weight
    assert weight.requires_grad
    assert_same(model.state_dict(), tensors)


def test_a_frozen_parameter_may_become_integers(path: Path) -> None:
    quantized = {"weight": noise(torch.int8, (3, 2)), "bias": noise(torch.uint8, (3,))}
    flashpack.save_file(quantized, path)
    model = nn.Linear(2, 3).requires_grad_(False)
    flashpack.assign_from_file(model, path)
    assert_same(model.state_dict(), quantized)


def test_integers_for_a_trained_parameter_are_refused(path: Path) -> None:
    flashpack.save_file({"weight": noise(torch.int8, (3, 2)), "bias": torch.zeros(3)}, path)
    model = nn.Linear(2, 3)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'weight' is torch\.int8.*requires a gradient"):
        flashpack.assign_from_file(model, path)
    assert snapshot(model) == before


def test_models_without_anything(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="Could not assign 1 names"):
        flashpack.assign_from_file(nn.ReLU(), path)
    flashpack.assign_from_file(nn.ReLU(), path, strict=False, strict_params=False)


@pytest.mark.parametrize("thing", [{}, None, torch.ones(1), nn.Linear])
def test_what_is_no_model_is_refused(thing: Any, packed: Path) -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        flashpack.assign_from_file(thing, packed)


def test_memory_formats_and_shapes_of_the_model_do_not_matter(path: Path) -> None:
    source = nn.Conv2d(3, 4, 3)
    flashpack.pack_to_file(source, path)
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    flashpack.assign_from_file(model, path)
    assert_same(model.state_dict(), source.state_dict())


def test_a_lazy_module_takes_its_shape_from_the_file(path: Path) -> None:
    source = nn.Linear(5, 3)
    flashpack.pack_to_file(source, path)
    model = nn.LazyLinear(3)
    flashpack.assign_from_file(model, path)
    assert_same({"weight": model.weight, "bias": model.bias}, source.state_dict())
    assert type(model.weight) is nn.Parameter


def test_inference_tensors_are_replaced_by_ordinary_ones(packed: Path, source: Small) -> None:
    with torch.inference_mode():
        model = Small()
        flashpack.assign_from_file(model, packed)
    assert_same(model.state_dict(), source.state_dict())
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert model.head.weight is model.embed.weight
    model(torch.tensor([1, 2])).sum().backward()
    assert model.embed.weight.grad is not None


def test_a_live_model_loaded_in_inference_mode_can_be_trained(packed: Path, model: Small) -> None:
    with torch.inference_mode():
        flashpack.assign_from_file(model, packed)
    model(torch.tensor([1, 2])).sum().backward()
    assert model.embed.weight.grad is not None


# Buffers


def with_buffer(tensor: Tensor, persistent: bool = True) -> nn.Module:
    model = nn.Module()
    model.register_buffer("table", tensor, persistent=persistent)
    return model


def test_a_buffer_of_another_dtype_is_refused(path: Path) -> None:
    flashpack.save_file({"table": torch.ones(3, dtype=torch.float64)}, path)
    model = with_buffer(torch.zeros(3))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'table' is torch\.float64.*torch\.float32.*coerce_dtype"):
        flashpack.assign_from_file(model, path)
    assert snapshot(model) == before


@BOTH
@pytest.mark.parametrize("meta", [False, True], ids=["live", "meta"])
def test_buffers_are_cast_on_request(meta: bool, eager: bool, path: Path) -> None:
    value = torch.tensor([1.5, 2.5, 1e30], dtype=torch.float64)
    flashpack.save_file({"table": value}, path)
    model = with_buffer(torch.zeros(3, device="meta" if meta else "cpu"))
    flashpack.assign_from_file(model, path, coerce_dtype=True, eager=eager)
    assert_same({"": model.table}, {"": value.float()})


def test_coerce_dtype_leaves_parameters_alone(path: Path) -> None:
    flashpack.pack_to_file(nn.Linear(2, 2), path, torch.float16)
    model = nn.Linear(2, 2)
    flashpack.assign_from_file(model, path, coerce_dtype=True)
    assert model.weight.dtype == torch.float16


def test_a_non_persistent_buffer_is_filled_when_the_file_has_it(path: Path) -> None:
    flashpack.save_file({"table": torch.ones(3)}, path)
    model = with_buffer(torch.zeros(3), persistent=False)
    flashpack.assign_from_file(model, path, strict=True)
    assert model.table.eq(1).all()
    assert model.state_dict() == {}


def test_a_non_persistent_buffer_is_never_missed(path: Path) -> None:
    flashpack.save_file({"weight": torch.ones(1)}, path)
    model = with_buffer(torch.zeros(3), persistent=False)
    model.weight = nn.Parameter(torch.zeros(1))
    flashpack.assign_from_file(model, path, strict=True)
    assert model.weight.eq(1).all()


# Names


MISSING_PARAMETER = "Missing 1 parameters: ['frozen']"
MISSING_BUFFER = "Missing 1 buffers: ['scale']"
UNKNOWN = "Could not assign 1 names: ['stranger']"
LENIENT = {"strict_params": False, "strict_buffers": False}


@pytest.mark.parametrize(
    ("gone", "options", "message"),
    [
        ("frozen", {}, MISSING_PARAMETER),
        ("frozen", {"strict": True}, MISSING_PARAMETER),
        ("frozen", {"strict_params": True, "strict_buffers": False}, MISSING_PARAMETER),
        ("frozen", {"strict": False}, None),
        ("frozen", {"strict_params": False}, None),
        ("frozen", LENIENT | {"strict": True}, MISSING_PARAMETER),
        ("frozen", {"ignore_names": ["frozen"]}, None),
        ("frozen", {"ignore_prefixes": ["fro"]}, None),
        ("frozen", {"ignore_suffixes": ["zen"]}, None),
        ("scale", {}, None),
        ("scale", {"strict": True}, MISSING_BUFFER),
        ("scale", {"strict_buffers": True}, MISSING_BUFFER),
        ("scale", {"strict": False, "strict_buffers": True}, None),
        ("scale", {"strict": True, "ignore_names": ["scale"]}, None),
    ],
)
def test_a_name_that_the_file_lacks(
    gone: str, options: dict[str, Any], message: str | None, source: Small, model: Small, path: Path
) -> None:
    flashpack.save_file(without(source, gone), path)
    before = state(model)
    kept = snapshot(model)
    if message is None:
        flashpack.assign_from_file(model, path, **options)
        expected = {**state(source), gone: before[gone], "cache": before["cache"]}
        assert_same(state(model), expected)
    else:
        with pytest.raises(ValueError) as caught:
            flashpack.assign_from_file(model, path, **options)
        assert message in str(caught.value)
        assert snapshot(model) == kept


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, True),
        ({"strict": True}, True),
        ({"strict_params": False, "strict_buffers": True}, True),
        (LENIENT, False),
        (LENIENT | {"strict": False}, False),
        (LENIENT | {"strict": True}, True),
        ({"ignore_names": ["stranger"]}, False),
        ({"ignore_prefixes": ["strang"]}, False),
        ({"ignore_suffixes": ["anger"]}, False),
    ],
)
def test_a_name_that_the_model_lacks(
    options: dict[str, Any], refused: bool, source: Small, model: Small, path: Path
) -> None:
    flashpack.save_file(without(source, stranger=torch.ones(2)), path)
    kept = snapshot(model)
    if refused:
        with pytest.raises(ValueError) as caught:
            flashpack.assign_from_file(model, path, **options)
        assert UNKNOWN in str(caught.value)
        assert snapshot(model) == kept
    else:
        flashpack.assign_from_file(model, path, **options)
        assert_same(model.state_dict(), source.state_dict())


def test_parameters_and_buffers_can_both_be_missing(source: Small, model: Small, path: Path) -> None:
    flashpack.save_file(without(source, "frozen", "scale"), path)
    with pytest.raises(ValueError) as caught:
        flashpack.assign_from_file(model, path, strict=True)
    assert "Missing 1 parameters and 1 buffers" in str(caught.value)
    assert "'frozen'" in str(caught.value)
    assert "'scale'" in str(caught.value)


def test_what_is_ignored_keeps_its_value(packed: Path, source: Small, model: Small) -> None:
    before = state(model)
    flashpack.assign_from_file(model, packed, ignore_prefixes=["body."], ignore_names=["frozen"])
    now = state(model)
    for name in now:
        ignored = name.startswith("body.") or name in ("frozen", "cache")
        assert bits(now[name]) == bits((before if ignored else state(source))[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {"ignore_names": "frozen"},
        {"ignore_prefixes": [1]},
        {"num_streams": 0},
        {"chunk_bytes": 0},
        {"distributed_shard_strategy": "diagonal"},
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], packed: Path, model: Small) -> None:
    kept = snapshot(model)
    with pytest.raises(
        ValueError, match=next(iter(options)).removeprefix("distributed_").replace("_s", ".s")
    ):
        flashpack.assign_from_file(model, packed, **options)
    assert snapshot(model) == kept


# What stays on the model


@BOTH
def test_the_blocks_can_be_kept(eager: bool, packed: Path, source: Small, model: Small) -> None:
    flashpack.assign_from_file(model, packed, keep_flash_ref_on_model=True, eager=eager)
    assert_same(model.state_dict(), source.state_dict())
    storage, footer = model._flash_shared_storage, model._flash_shared_storage_meta
    assert footer["index"]
    first = storage.block(0)
    inside = first.data_ptr(), first.data_ptr() + first.nbytes
    assert inside[0] <= model.frozen.data_ptr() < inside[1]
    with torch.no_grad():
        model.frozen.fill_(5)
    assert (first == 5).sum() >= 3


def test_nothing_is_kept_by_default(packed: Path, model: Small) -> None:
    attributes = set(vars(model))
    flashpack.assign_from_file(model, packed)
    assert set(vars(model)) == attributes


def test_a_report_on_request(
    source: Small, model: Small, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flashpack.save_file(without(source, "frozen", stranger=torch.ones(2)), path)
    flashpack.assign_from_file(model, path, strict=False, strict_params=False)
    assert capsys.readouterr().out == ""
    flashpack.assign_from_file(model, path, strict=False, strict_params=False, silent=False)
    told = capsys.readouterr().out
    assert "Assigned" in told
    assert "'frozen'" in told
    assert "'stranger'" in told
