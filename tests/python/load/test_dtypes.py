"""dtype= of loads: floating tensors are cast while they are loaded, all others are the file's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack import FlashPackMixin
from flashpack._core.native import dtypes
from flashpack._load import cast as _cast
from flashpack._load.cast import is_castable
from helpers import DTYPES, assert_same, bits, dtype_id, noise
from torch import Tensor, nn

PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EAGER = pytest.mark.parametrize("eager", [None, True], ids=["mapped", "eager"])


class Model(nn.Module, FlashPackMixin):
    """Parameters in several dtypes, a tie, an integer buffer and floating ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.rand(()))
        self.register_buffer("empty", torch.zeros(0, 3))


def mixed(dtype: torch.dtype = torch.bfloat16) -> Model:
    """In `dtype`, but for the norm."""
    model = Model().to(dtype)
    model.norm.float()
    return model


@pytest.fixture
def state(path: Path) -> dict[str, Tensor]:
    """What the file at `path` holds."""
    torch.manual_seed(3)
    source = Model().double()
    source.norm.num_batches_tracked += 2301
    flashpack.pack_to_file(source, path)
    return source.state_dict()


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: each.to(dtype) if each.is_floating_point() else each for name, each in tensors.items()}


# Into models


@EAGER
@pytest.mark.parametrize("meta", [False, True], ids=["live", "meta"])
@pytest.mark.parametrize("dtype", PLAIN, ids=dtype_id)
def test_a_model_keeps_its_dtypes_as_load_state_dict_does(
    dtype: torch.dtype, meta: bool, eager: bool | None, state: dict[str, Tensor], path: Path
) -> None:
    with torch.device("meta" if meta else "cpu"):
        model = mixed(dtype)
    flashpack.assign_from_file(model, path, dtype="model", eager=eager, strict=True)
    expected = mixed(dtype)
    expected.load_state_dict(state)
    assert_same(model.state_dict(), expected.state_dict())
    assert model.head.weight is model.embed.weight
    assert model.scale.requires_grad


def test_a_model_keeps_the_memory_it_has(state: dict[str, Tensor], path: Path) -> None:
    model, expected = mixed(), mixed()
    model.embed.weight.data = model.embed.weight.data.t().contiguous().t()
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    told: list[tuple[int, int]] = []
    flashpack.assign_from_file(
        model, path, dtype="model", in_place=True, progress=lambda *done: told.append(done)
    )
    expected.load_state_dict(state)
    assert_same(model.state_dict(), expected.state_dict())
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


@EAGER
@pytest.mark.parametrize("meta", [False, True], ids=["live", "meta"])
@pytest.mark.parametrize("dtype", [*PLAIN, torch.float8_e4m3fn, "float16", "torch.bfloat16"], ids=str)
def test_a_dtype_is_that_of_all_floating_tensors(
    dtype: Any, meta: bool, eager: bool | None, state: dict[str, Tensor], path: Path
) -> None:
    with torch.device("meta" if meta else "cpu"):
        model = mixed()
    flashpack.assign_from_file(model, path, dtype=dtype, eager=eager)
    named = getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    assert_same(model.state_dict(), cast(state, named))
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("options", [{}, {"dtype": "file"}])
def test_by_default_parameters_take_the_dtype_of_the_file(
    options: dict[str, Any], state: dict[str, Tensor], path: Path
) -> None:
    model = Model().to(torch.float16).double()
    model.embed.half()
    flashpack.assign_from_file(model, path, **options)
    assert_same(model.state_dict(), state)


def test_buffers_can_keep_their_dtype_alone(state: dict[str, Tensor], path: Path) -> None:
    model = mixed()
    flashpack.assign_from_file(model, path, dtype=torch.float16, coerce_dtype=True)
    expected = cast(state, torch.float16)
    expected |= {name: state[name].float() for name in ("norm.running_mean", "norm.running_var")}
    assert_same(model.state_dict(), expected | {"empty": state["empty"].bfloat16()})


def test_a_file_of_the_models_own_dtypes_takes_the_fast_path(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).half()
    flashpack.pack_to_file(source, path)
    monkeypatch.setattr("flashpack._module.assign.find_slots", None)
    for in_place in (False, True):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).half()
        flashpack.assign_from_file(model, path, dtype="model", in_place=in_place)
        assert_same(model.state_dict(), source.state_dict())


REFUSED: dict[str, tuple[torch.dtype, torch.dtype, dict[str, Any]]] = {
    "integers for floats": (torch.int32, torch.float32, {"dtype": "model"}),
    "floats for integers": (torch.float32, torch.int32, {"dtype": "model"}),
    "other integers": (torch.int32, torch.int64, {"dtype": "model"}),
    "complex for real": (torch.complex64, torch.float32, {"dtype": "model"}),
    "real for complex": (torch.float32, torch.complex64, {"dtype": "model"}),
    "other complex": (torch.complex64, torch.complex128, {"dtype": "model"}),
    "pairs of numbers": (torch.float4_e2m1fn_x2, torch.float32, {"dtype": "model"}),
    "integers, whatever the floats": (torch.int32, torch.int64, {"dtype": torch.float16}),
    "other memory": (torch.float32, torch.float16, {"dtype": torch.bfloat16, "in_place": True}),
    "memory as it is": (torch.float32, torch.float16, {"in_place": True}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_cast_is_refused(name: str, path: Path) -> None:
    stored, own, options = REFUSED[name]
    flashpack.save_file({"a": torch.ones(2), "b": noise(stored, (3,))}, path)
    model = nn.Module()
    model.register_buffer("a", torch.zeros(2))
    model.register_buffer("b", torch.zeros(3).to(own))
    if options.get("in_place"):
        model.b = nn.Parameter(model._buffers.pop("b"))
    with pytest.raises(ValueError, match=r"'b'.* is torch\.") as caught:
        flashpack.assign_from_file(model, path, **options)
    assert str(own) in str(caught.value)
    assert not model.a.any()


def test_blocks_cannot_be_kept_in_another_dtype(path: Path) -> None:
    flashpack.pack_to_file(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="keep_flash_ref_on_model"):
        flashpack.assign_from_file(nn.Linear(2, 2), path, dtype="model", keep_flash_ref_on_model=True)


# Without a model


@pytest.mark.parametrize("load", [{}, {"eager": True}, {"verify": True}], ids=str)
@pytest.mark.parametrize("dtype", [*PLAIN, torch.float8_e5m2], ids=dtype_id)
def test_files_of_every_dtype(dtype: torch.dtype, load: dict[str, Any], path: Path) -> None:
    tensors = {dtype_id(each): noise(each, (3, 5), seed) for seed, each in enumerate(DTYPES)}
    tensors |= {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 2),
        "tied": tensors["float32"].view(5, 3),
    }
    flashpack.save_file(tensors, path)
    loaded = flashpack.load_file(path, dtype=dtype, **load)
    kept = {"float4_e2m1fn_x2"}
    expected = {
        name: each if name in kept or not each.is_floating_point() else each.to(dtype)
        for name, each in tensors.items()
    }
    assert_same(loaded, expected)
    assert loaded["tied"].data_ptr() == loaded["float32"].data_ptr()
    assert list(loaded) == list(flashpack.load_file(path))


@EAGER
def test_names_and_parts_are_cast(eager: bool | None, state: dict[str, Tensor], path: Path) -> None:
    names = ["scale", "embed.weight", "norm.num_batches_tracked"]
    loaded = flashpack.load_file(path, names=names, dtype="float16", eager=eager)
    assert list(loaded) == names
    assert_same(loaded, {name: cast(state, torch.float16)[name] for name in names})
    part = flashpack.load_file(path, slices={"embed.weight": (0, 2, 5)}, dtype="float16", eager=eager)
    assert_same(part, cast(state, torch.float16) | {"embed.weight": state["embed.weight"][2:5].half()})
    with pytest.raises(ValueError, match="slices of tensors that are not loaded"):
        flashpack.load_file(
            path, names=["scale"], slices={"embed.weight": (0, 2, 5)}, dtype="float16", eager=eager
        )
    with pytest.raises(ValueError, match="nobody"):
        flashpack.load_file(path, names=["scale", "nobody"], dtype="float16", eager=eager)


@pytest.mark.parametrize(
    "dtype", ["model", torch.int32, torch.complex64, torch.float4_e2m1fn_x2, "nothing", 3]
)
def test_dtypes_that_make_no_sense_are_refused(dtype: Any, path: Path) -> None:
    flashpack.pack_to_file(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"dtype"):
        flashpack.load_file(path, dtype=dtype)
    if dtype != "model":
        with pytest.raises(ValueError, match=r"dtype"):
            flashpack.assign_from_file(nn.Linear(2, 2), path, dtype=dtype)


def test_what_is_loaded_in_inference_mode_can_be_trained(path: Path) -> None:
    flashpack.pack_to_file(nn.Linear(2, 2), path)
    with torch.inference_mode():
        loaded = flashpack.load_file(path, dtype="float16")
    assert not any(tensor.is_inference() for tensor in loaded.values())


# A part at a time


LOADS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "load_file": lambda path, **options: flashpack.load_file(path, eager=True, dtype="float16", **options),
    "assign_from_file": lambda path, **options: assigned(path, eager=True, dtype="float16", **options),
    "in place": lambda path, **options: assigned(path, in_place=True, dtype="model", **options),
}


def assigned(path: Path, **options: Any) -> dict[str, Tensor]:
    shapes = {name: tensor.shape for name, tensor in flashpack.load_file(path).items()}
    model = nn.ParameterDict({name: torch.zeros(shape).half() for name, shape in shapes.items()})
    flashpack.assign_from_file(model, path, **options)
    return {name: tensor.detach() for name, tensor in model.items()}


@pytest.mark.parametrize("name", LOADS)
def test_few_tensors_are_held_in_both_dtypes(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    tensors = {f"t{number}": torch.randn(number, 10) for number in range(20)}
    tensors |= {"large": torch.randn(100, 10), "halves": torch.randn(40, 10).half()}
    tensors |= {"tied": tensors["large"]}
    flashpack.save_file(tensors, path)
    monkeypatch.setattr(_cast, "GROUP_BYTES", 2000)
    held: list[int] = []

    def watched(made: dict[str, Tensor], dtypes: dict[str, torch.dtype]) -> dict[str, Tensor]:
        held.append(len({made[each].data_ptr() for each in dtypes if made[each].dtype != dtypes[each]}))
        sizes = [made[each].nbytes for each in dtypes if made[each].dtype != dtypes[each]]
        assert sum(sizes) <= 2000 or set(sizes) == {4000}
        return really(made, dtypes)

    really = _cast.cast
    monkeypatch.setattr(_cast, "cast", watched)
    told: list[tuple[int, int]] = []
    loaded = LOADS[name](path, progress=lambda *done: told.append(done))
    assert_same(loaded, cast(tensors, torch.float16))
    assert len(held) > 4
    assert told == sorted(told)
    assert len({whole for _, whole in told}) == 1
    assert told[-1][0] == told[-1][1]
    assert bits(loaded["tied"]) == bits(loaded["large"])


# The mixin


def test_the_mixin_casts(state: dict[str, Tensor], path: Path) -> None:
    loaded = Model.from_flashpack(path, dtype="bfloat16", silent=True)
    assert_same(loaded.state_dict(), cast(state, torch.bfloat16))
    loaded = Model.from_flashpack(path, dtype="model", silent=True)
    assert_same(loaded.state_dict(), cast(state, torch.float32))


def test_an_initialiser_that_has_a_dtype_gets_it(path: Path) -> None:
    class Typed(nn.Linear, FlashPackMixin):
        def __init__(self, dtype: torch.dtype | None = None) -> None:
            super().__init__(2, 2, dtype=dtype)
            self.built = self.weight.dtype

    flashpack.pack_to_file(nn.Linear(2, 2), path)
    loaded = Typed.from_flashpack(path, dtype=torch.float16, silent=True)
    assert loaded.built == torch.float16
    assert loaded.weight.dtype == torch.float32


# What the format knows of them


def test_the_table_of_dtypes_says_what_torch_says() -> None:
    table = dtypes()
    assert {getattr(torch, name) for name in table} == set(DTYPES)
    for name, known in table.items():
        dtype = getattr(torch, name)
        assert known.bytes == dtype.itemsize, name
        assert known.castable == is_castable(dtype), name
        assert known.converted == (dtype in PLAIN), name
    assert [table[name].safetensors for name in ("bfloat16", "complex128")] == ["BF16", None]
