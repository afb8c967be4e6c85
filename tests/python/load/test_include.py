"""`include=`: only these layers, by name or glob, of every kind of file and into every kind of model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import flashpack
import pytest
import torch
from flashpack._core.names import Patterns
from helpers import assert_same, bits, bytes_read
from safetensors.torch import save_file
from torch import Tensor, nn

FIRST = ["layers.1.weight", "layers.1.bias"]
BIASES = [f"layers.{number}.bias" for number in range(12)]


class Layers(nn.Module):
    """Twelve layers, so that one's name begins as another's does, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(40, 40) for _ in range(12)))
        self.head = nn.Linear(40, 3)
        self.register_buffer("steps", torch.arange(3))


@pytest.fixture(scope="module")
def model() -> Layers:
    return Layers()


@pytest.fixture(scope="module", params=["flashpack", "safetensors", "shards"])
def source(request: pytest.FixtureRequest, model: Layers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("include")
    path = folder / f"model.{'flashpack' if request.param == 'shards' else request.param}"
    if request.param == "safetensors":
        save_file(model.state_dict(), path)
    else:
        size = 20_000 if request.param == "shards" else None
        flashpack.save_file(model.state_dict(), path, max_shard_size=size)
    return path


def of(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: state[name] for name in names}


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("layers.1.bias", "layers.1", True),
        ("layers.1.bias", "layers.1.", True),
        ("layers.10.bias", "layers.1", False),
        ("layers.1.bias", "layers.1.bias", True),
        ("layers.1.bias", "bias", False),
        ("layers.1.bias", "*.bias", True),
        ("layers.1.bias", "layers.*", True),
        ("layers.1.bias", "layers.?.bias", True),
        ("layers.10.bias", "layers.?.bias", False),
        ("layers.1.bias", "layers.[12].*", True),
        ("layers.1.bias", "LAYERS.*", False),
        ("layers.1.bias", "layers.*.bia", False),
        ("table[0]", "table[0]", True),
    ],
)
def test_what_a_pattern_selects(name: str, pattern: str, expected: bool) -> None:
    assert Patterns([pattern, "other.*", "others"]).fit(name) is expected


@pytest.mark.parametrize("options", [{}, {"eager": True}, {"dtype": "float64"}], ids=str)
def test_a_load_has_what_is_included(source: Path, model: Layers, options: Mapping[str, object]) -> None:
    dtype = torch.float64 if "dtype" in options else torch.float32
    for include, names in ((["layers.1"], FIRST), (["*.bias", "head.bias"], [*BIASES, "head.bias"])):
        got = flashpack.load_file(source, include=include, **options)  # type: ignore[arg-type]
        assert_same(got, {name: tensor.to(dtype) for name, tensor in of(model, names).items()})


def test_they_come_in_file_order(source: Path) -> None:
    got = list(flashpack.load_file(source, include=["head", "layers.3"]))
    assert got == [name for name in flashpack.open(source).keys() if name in got]  # noqa: SIM118
    assert len(got) == 4


def test_slices_are_of_what_is_included(source: Path, model: Layers) -> None:
    got = flashpack.load_file(source, include=["head"], slices={"head.weight": (1, 2, 5)})
    assert_same(
        got, {"head.weight": model.head.weight.detach()[:, 2:5], "head.bias": model.head.bias.detach()}
    )
    with pytest.raises(ValueError, match=r"slices of tensors that are not loaded: \['head.weight'\]"):
        flashpack.load_file(source, include=["layers.1"], slices={"head.weight": (1, 2, 5)})


@pytest.mark.parametrize("options", [{}, {"eager": True}, {"in_place": True}, {"dtype": "model"}], ids=str)
def test_only_these_layers_of_a_model_change(
    source: Path, model: Layers, options: Mapping[str, object]
) -> None:
    other = Layers()
    before = {name: bits(tensor) for name, tensor in other.state_dict().items()}
    result = flashpack.assign_from_file(other, source, include=["layers.1", "head.*"], strict=True, **options)  # type: ignore[arg-type]
    assert result == ([], [])
    chosen = [*FIRST, "head.weight", "head.bias"]
    assert_same(of(other, chosen), of(model, chosen))
    rest = {name: bits(tensor) for name, tensor in other.state_dict().items() if name not in chosen}
    assert rest == {name: before[name] for name in rest}


def test_what_is_included_and_ignored_is_ignored(source: Path, model: Layers) -> None:
    other = Layers()
    before = bits(other.head.bias)
    flashpack.assign_from_file(other, source, include=["head"], ignore_suffixes=["bias"])
    assert bits(other.head.weight) == bits(model.head.weight)
    assert bits(other.head.bias) == before


def test_a_module_that_has_only_these_layers_is_filled(source: Path, model: Layers) -> None:
    with torch.device("meta"):
        part = nn.ModuleDict({"head": nn.Linear(40, 3)})
    flashpack.assign_from_file(part, source, include=["head"])
    assert_same(part.state_dict(), of(model, ["head.weight", "head.bias"]))


def test_an_included_name_that_the_file_lacks_is_missing(source: Path) -> None:
    other = nn.ModuleDict({"head": nn.Linear(40, 3), "layers": nn.Linear(1, 1)})
    other["head"].extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=r"Missing 1 parameters: \['head.extra'\]"):
        flashpack.assign_from_file(other, source, include=["head"])


def test_a_pattern_that_fits_nothing_is_named(source: Path, model: Layers) -> None:
    message = r"include: 'head\.weigt' fits none of 27 tensors; did you mean 'head\.weight'\?"
    with pytest.raises(ValueError, match=message):
        flashpack.load_file(source, include=["layers.1", "head.weigt"])
    before = bits(model.head.weight)
    with pytest.raises(ValueError, match=r"include: 'decoder\.\*' fits none of 27 tensors$"):
        flashpack.assign_from_file(model, source, strict=False, include=["head", "decoder.*"])
    assert bits(model.head.weight) == before


def test_lists_without_sense_are_refused(source: Path, model: Layers) -> None:
    with pytest.raises(ValueError, match="include must be a list of strings, not the string 'head'"):
        flashpack.load_file(source, include="head")
    with pytest.raises(ValueError, match="include is empty, which selects nothing"):
        flashpack.assign_from_file(model, source, include=[])
    with pytest.raises(ValueError, match="names and include both select"):
        flashpack.load_file(source, include=["head"], names=["head.bias"])


def test_only_their_bytes_are_read(tmp_path: Path) -> None:
    large = {name: torch.ones(1 << 20) for name in ("a.weight", "b.weight", "c.weight", "d.weight")}
    flashpack.save_file(large, tmp_path / "large.flashpack")
    module = nn.ModuleDict({name: nn.Linear(1 << 20, 1, bias=False) for name in "ab"})
    for each in module.values():
        each.weight = nn.Parameter(torch.zeros(1 << 20))
    before = bytes_read()
    flashpack.assign_from_file(module, tmp_path / "large.flashpack", include=["a"], eager=True)
    assert bytes_read() - before < 2 * large["a.weight"].nbytes
    assert module["a"].weight.eq(1).all()
    assert module["b"].weight.eq(0).all()
