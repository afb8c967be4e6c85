"""The fast path of assign_from_file, decided natively, gives what matching the names one by one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import flashpack.ops
import pytest
import torch
from flashpack._module import assign as _assign
from helpers import assert_same, bits, noise
from torch import Tensor, nn

ops = torch.ops.flashpack


class Model(nn.Module):
    """Tensors of several sizes, names and kinds, not in the order of a file."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def fresh(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.scale = nn.Parameter(fresh())
        self.none = nn.Parameter(fresh(0, 3))
        self.layers = nn.ModuleList(nn.Module() for _ in range(9))
        for number, layer in enumerate(self.layers):
            layer.weight = nn.Parameter(fresh(number + 1, 4))
            layer.bias = nn.Parameter(fresh(number + 1), requires_grad=bool(number % 2))
            layer.register_parameter("absent", None)
        self.image = nn.Parameter(fresh(2, 3, 4, 5))
        self.register_buffer("steps", torch.arange(seed, seed + 9))
        self.register_buffer("scratch", fresh(3), persistent=False)


def channels_last(model: Model) -> None:
    model.image.data = model.image.data.to(memory_format=torch.channels_last)


def beside_each_other(model: Model) -> None:
    layers = list(model.layers)[:5]
    parts = torch.zeros(20).split([layer.bias.numel() for layer in layers] + [5])
    for layer, part in zip(layers, parts, strict=False):
        layer.bias.data = part


def expanded(model: Model) -> None:
    model.steps = torch.zeros(1, dtype=torch.int64).expand(9)


def one_for_two_names(model: Model) -> None:
    model.layers[3].weight = nn.Parameter(torch.zeros(3, 4))
    model.layers[2].weight = model.layers[3].weight


def one_shape_for_two_names(model: Model) -> None:
    model.layers[3].weight = nn.Parameter(torch.zeros(3, 4))


def inference(model: Model) -> None:
    with torch.inference_mode():
        model.layers[0].weight = nn.Parameter(torch.zeros(1, 4))


def partly_meta(model: Model) -> None:
    model.layers[0].weight = nn.Parameter(torch.zeros(1, 4, device="meta"))


def another_dtype(model: Model) -> None:
    model.scale.data = model.scale.data.double()


class Special(nn.Parameter):
    pass


def subclass(model: Model) -> None:
    model.scale = Special(torch.zeros(()))


def as_it_is(_: Model) -> None:
    pass


FAST = [as_it_is, channels_last, beside_each_other, expanded]
SLOW = [inference, partly_meta, another_dtype, subclass]
EAGER = pytest.mark.parametrize("eager", [None, True], ids=["mapped", "eager"])


def load(
    model: Model, path: Path, eager: bool | None, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[bool]:
    """Whether the fast path was taken."""
    taken: list[bool] = []

    def watched(*args: object) -> object:
        incompatible = fast(*args)
        taken.append(incompatible is not None)
        return incompatible

    fast: Callable[..., object] = _assign.assign_fast
    with monkeypatch.context() as patch:
        patch.setattr(_assign, "assign_fast", watched)
        flashpack.assign_from_file(model, path, eager=eager, **options)
    return taken


def generally(
    model: nn.Module, path: Path, eager: bool | None, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> object:
    with monkeypatch.context() as patch:
        patch.setattr(_assign, "assign_fast", lambda *_: None)
        return flashpack.assign_from_file(model, path, eager=eager, **options)


def outline(tensor: Tensor) -> object:
    storage = tensor.untyped_storage()
    return (
        *(type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad, tensor.is_leaf),
        *(bits(tensor), tensor._version, tensor.storage_offset(), storage.nbytes(), storage.resizable()),
    )


@pytest.fixture
def source() -> Model:
    return Model(1)


@pytest.fixture
def path(source: Model, tmp_path: Path) -> Path:
    path = tmp_path / "model.flashpack"
    flashpack.pack_to_file(source, path)
    return path


@EAGER
@pytest.mark.parametrize("change", [*FAST, *SLOW])
def test_the_fast_path_gives_what_the_general_one_does(
    change: Callable[[Model], None],
    eager: bool | None,
    path: Path,
    source: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, other = Model(2), Model(2)
    change(model)
    change(other)
    before = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    scratch = bits(model.scratch)
    assert load(model, path, eager, monkeypatch) == [change in FAST]
    generally(other, path, eager, monkeypatch)
    assert_same(model.state_dict(), source.state_dict())
    tensors, others = (each.state_dict(keep_vars=True) for each in (model, other))
    assert {name: outline(each) for name, each in tensors.items()} == {
        name: outline(each) for name, each in others.items()
    }
    if change is not inference:
        assert {id(tensor) for tensor in tensors.values()} == before
    assert len({each.untyped_storage().data_ptr() for each in tensors.values() if each.numel()}) == (
        sum(each.numel() > 0 for each in tensors.values())
    )
    assert bits(model.scratch) == scratch


def test_the_records_of_one_tensor_are_compared_on_the_general_path(
    path: Path, source: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_shape_for_two_names(source)
    with torch.no_grad():
        source.layers[3].weight.copy_(source.layers[2].weight)
    flashpack.pack_to_file(source, path)
    model = Model(2)
    one_for_two_names(model)
    assert load(model, path, None, monkeypatch) == [False]
    assert model.layers[2].weight is model.layers[3].weight
    assert_same(model.state_dict(), source.state_dict())


def test_a_report_on_request(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flashpack.assign_from_file(Model(2), path, silent=False)
    said = capsys.readouterr().out
    assert said == f"Assigned 355 elements to 21 parameters and 1 buffers from {path}\n"


def test_a_load_that_is_watched_is_assigned_when_nothing_can_fail_any_more(
    path: Path, source: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ({"silent": False}, {"progress": lambda *_: None}):
        model = Model(2)
        assert load(model, path, True, monkeypatch, **options) == [False]
        assert_same(model.state_dict(), source.state_dict())
    assert "Assigned 355 elements" in capsys.readouterr().out


def test_a_script_module(tmp_path: Path) -> None:
    class Scripted(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

    path, given = tmp_path / "model.flashpack", {"inner.weight": torch.randn(3)}
    flashpack.save_file(given, path)
    model = nn.ModuleDict({"inner": Scripted()})
    flashpack.assign_from_file(model, path)
    assert_same(model.state_dict(), given)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_names_that_cannot_be_joined(
    name: str, path: Path, source: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(2)
    model.register_buffer(name, torch.zeros(2))
    assert load(model, path, None, monkeypatch) == [False]
    assert_same({key: each for key, each in model.state_dict().items() if key != name}, source.state_dict())


# Names that only one side has


class More(Model):
    """With tensors that the file lacks."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.more = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))


class Fewer(Model):
    """Without tensors that the file has."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        del self.image, self.layers[8]


class Normed(Model):
    """With a batch norm, whose count a file may lack."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.norm = nn.BatchNorm1d(2)


def scratched(path: Path) -> None:
    """A file that holds what state dicts do not."""
    source = Model(1)
    flashpack.save_file({**source.state_dict(), "scratch": source.scratch}, path)


@EAGER
@pytest.mark.parametrize("in_place", [False, True], ids=["", "in place"])
@pytest.mark.parametrize("kind", [More, Fewer])
def test_what_is_left_over_is_left_alone(
    kind: type[Model], in_place: bool, eager: bool | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = kind(2), kind(2)
    model.load_state_dict(other.state_dict())
    versions = {name: tensor._version for name, tensor in model.state_dict(keep_vars=True).items()}
    options = {"strict": False, "in_place": in_place}
    if in_place:
        del model.none, other.none  # an empty tensor has no memory to fill
    assert load(model, path, eager, monkeypatch, **options) == [True]
    expected = generally(other, path, eager, monkeypatch, **options)
    assert_same(model.state_dict(), other.state_dict())
    assert flashpack.assign_from_file(kind(2), path, strict=False) == expected or in_place
    left = [name for name in ("more.weight", "more.bias", "mean") if kind is More]
    assert all(model.state_dict(keep_vars=True)[name]._version == versions[name] for name in left)


def test_what_is_left_over_is_told(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = flashpack.assign_from_file(More(2), path, strict=False, silent=False)
    assert keys == (["mean", "more.weight", "more.bias"], [])
    assert "Missing 3 names" in capsys.readouterr().out
    keys = flashpack.assign_from_file(Fewer(2), path, strict=False, silent=False)
    assert sorted(keys.unexpected_keys) == ["image", "layers.8.bias", "layers.8.weight"]
    assert "Discarded 3 names" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "options"), [(More, {}), (Fewer, {}), (Normed, {"strict": False})], ids=["more", "fewer", "norm"]
)
def test_what_may_not_be_left_over_is_matched(
    kind: type[Model], options: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        assert load(kind(2), path, None, monkeypatch, **options) == [False]
    except ValueError:
        assert kind is not Normed
    else:
        assert kind is Normed


def test_a_buffer_that_state_dicts_lack_is_filled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratched(path)
    model = Model(2)
    assert load(model, path, None, monkeypatch, strict=False) == [False]
    assert bits(model.scratch) == bits(Model(1).scratch)


def test_nothing_in_common(path: Path) -> None:
    model = nn.Linear(2, 2)
    keys = flashpack.assign_from_file(model, path, strict=False)
    assert keys.missing_keys == ["weight", "bias"]
    assert len(keys.unexpected_keys) == 22


# The operator


def changed(given: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    given = dict(given)
    match how:
        case "a name less":
            del given["image"]
        case "a name more":
            given["more"] = torch.zeros(2)
        case "another name":
            given["other"] = given.pop("image")
        case "a name twice":
            given["image\0image"] = given.pop("image")
        case "another shape":
            given["image"] = torch.zeros(5, 4, 3, 2)
        case "another dtype":
            given["image"] = torch.zeros(2, 3, 4, 5, dtype=torch.int32)
        case "another device":
            given["image"] = torch.zeros(2, 3, 4, 5, device="meta")
        case "sparse":
            given["image"] = torch.zeros(2, 3, 4, 5).to_sparse()
    return given


def test_assigning_all_gives_other_memory(path: Path, source: Model) -> None:
    given = {name: tensor.clone() for name, tensor in Model(2).state_dict().items()}
    before = {name: tensor.data_ptr() for name, tensor in given.items() if tensor.numel()}
    assert ops.assign.all(ops.open(str(path)), "\0".join(given), list(given.values()))[0]
    assert_same(given, source.state_dict())
    assert all(given[name].data_ptr() != address for name, address in before.items())


@pytest.mark.parametrize(
    "how",
    [
        *("a name less", "a name more", "another name", "a name twice"),
        *("another shape", "another dtype", "another device", "sparse"),
    ],
)
def test_assigning_all_changes_nothing_where_something_does_not_fit(how: str, path: Path) -> None:
    given = changed({name: tensor.clone() for name, tensor in Model(2).state_dict().items()}, how)
    real = {name: tensor for name, tensor in given.items() if not tensor.is_meta}
    before = {name: bits(tensor.to_dense()) for name, tensor in real.items()}
    assert not ops.assign.all(ops.open(str(path)), "\0".join(given), list(given.values()))[0]
    assert {name: bits(tensor.to_dense()) for name, tensor in real.items()} == before


def test_assigning_all_leaves_tied_records_to_the_general_path(tmp_path: Path) -> None:
    path, tied = tmp_path / "tied.flashpack", noise(torch.float32, (4, 4))
    flashpack.save_file({"one": tied, "other": tied}, path)
    given = {"one": torch.zeros(4, 4), "other": torch.zeros(4, 4)}
    assert not ops.assign.all(ops.open(str(path)), "\0".join(given), list(given.values()))[0]
    model = nn.ParameterDict(given)
    flashpack.assign_from_file(model, path)
    assert_same(model.state_dict(), {"one": tied, "other": tied})
    assert model["one"].data_ptr() != model["other"].data_ptr()
