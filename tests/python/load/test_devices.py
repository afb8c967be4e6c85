"""Which device a load goes to: as asked for, else the model's own, however that is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack import FlashPackMixin
from flashpack.deserialization import read_flashpack_file
from helpers import assert_same
from torch import Tensor, nn


class Scale(nn.Module):
    """A buffer alone, and `device` as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class Raising(nn.Linear):
    @property
    def device(self) -> torch.device:
        raise RuntimeError("not on a device yet")


class Method(nn.Linear):
    def device(self) -> str:
        return "cuda"


def with_attribute(value: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = nn.Linear(2, 2)
        model.device = value
        return model

    return build


def sized(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: kind(2, 2)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a property that finds no parameter": Scale,
    "a property that raises": sized(Raising),
    "a method": sized(Method),
    "a submodule": lambda: nn.ModuleDict({"user": nn.Embedding(4, 2), "device": nn.Embedding(3, 2)}),
    "text that names none": with_attribute("phone"),
    "text that names another": with_attribute("cuda:7"),
    "a number": with_attribute(0),
    "None": with_attribute(None),
    "meta": with_attribute(torch.device("meta")),
    "the CPU with an index": with_attribute(torch.device("cpu", 0)),
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_calls_its_device_does_no_harm(name: str, in_place: bool, path: Path) -> None:
    source, model = MODELS[name](), MODELS[name]()
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.add_(1)
    flashpack.pack_to_file(source, path)
    flashpack.assign_from_file(model, path, in_place=in_place)
    assert_same(model.state_dict(), source.state_dict())


def test_a_device_that_the_model_states_is_used(path: Path) -> None:
    flashpack.pack_to_file(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="is for cuda:3, but the model's tensor is on cpu"):
        flashpack.assign_from_file(with_attribute(torch.device("cuda:3"))(), path, in_place=True)


class Loadable(nn.Sequential, FlashPackMixin):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 3), nn.BatchNorm1d(3))


def assigned(path: Path, device: Any, **options: Any) -> dict[str, Tensor]:
    model = Loadable()
    flashpack.assign_from_file(model, path, device, **options)
    return model.state_dict()


LOADS: dict[str, Callable[[Path, Any], dict[str, Tensor]]] = {
    "assign_from_file": assigned,
    "in place": lambda path, device: assigned(path, device, in_place=True),
    "eager": lambda path, device: assigned(path, device, eager=True),
    "with blocks": lambda path, device: assigned(path, device, keep_flash_ref_on_model=True),
    "from_flashpack": lambda path, device: Loadable.from_flashpack(path, device=device).state_dict(),
    "load_file": flashpack.load_file,
    "load_file, names": lambda path, device: flashpack.load_file(
        path, device, names=flashpack.open(path).keys()
    ),
}


@pytest.mark.parametrize("device", ["cpu:0", torch.device("cpu", 0)], ids=repr)
@pytest.mark.parametrize("name", LOADS)
def test_the_cpu_may_have_an_index(name: str, device: Any, path: Path) -> None:
    source = Loadable()
    flashpack.pack_to_file(source, path)
    loaded = LOADS[name](path, device)
    assert_same(loaded, source.state_dict())
    assert {tensor.device for tensor in loaded.values()} == {torch.device("cpu")}


def test_handles_and_blocks_know_the_cpu_by_its_index(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(2)}, path)
    handle = flashpack.open(path, device="cpu:0")
    assert handle.get_tensor("a").data_ptr() == handle.get_tensor("a").data_ptr()
    assert handle.get_slice("a")[:1].device == torch.device("cpu")
    assert read_flashpack_file(path, "cpu:0")[0].device == torch.device("cpu")


def test_there_is_one_cpu(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no device cpu:1"):
        flashpack.load_file(path, "cpu:1")
