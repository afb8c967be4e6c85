"""Names of a file and of a model that are not the same: what is returned, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from small_model import Small, without
from torch import Tensor, nn


def refused(model: nn.Module, path: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        flashpack.assign_from_file(model, path, **options)
    message = str(caught.value)
    assert len(message.encode()) <= 4096
    return message


CHANGES: dict[str, Callable[[Small], dict[str, Tensor]]] = {
    "nothing": lambda source: dict(source.state_dict()),
    "names less": lambda source: without(source, "frozen", "scale", "body.1.running_var"),
    "names more": lambda source: without(source, zebra=torch.ones(1), ant=torch.ones(1)),
    "both": lambda source: without(source, "body.0.bias", "scale", other=torch.ones(2)),
    "a tied pair less": lambda source: without(source, "embed.weight", "head.weight"),
    "another file": lambda _: {"a.b": torch.ones(1)},
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_lenient_load_returns_what_load_state_dict_does(change: str, in_place: bool, path: Path) -> None:
    tensors = CHANGES[change](Small())
    flashpack.save_file(tensors, path)
    keys = flashpack.assign_from_file(Small(), path, strict=False, in_place=in_place)
    expected = Small().load_state_dict(tensors, strict=False)
    assert keys.missing_keys == expected.missing_keys
    assert sorted(keys.unexpected_keys) == sorted(expected.unexpected_keys)
    assert tuple(keys) == (keys.missing_keys, keys.unexpected_keys)
    assert type(keys) is type(expected)


def test_names_that_need_not_be_there_are_not_missing(path: Path) -> None:
    source = Small()
    flashpack.save_file(without(source, "embed.weight", "frozen", cache=torch.ones(2)), path)
    model = Small()
    keys = flashpack.assign_from_file(model, path, ignore_names=["frozen"])
    assert keys == ([], [])
    assert torch.equal(model.embed.weight, source.head.weight)
    assert model.cache.eq(1).all()


def test_lenient_in_params_alone_a_load_returns_what_is_missing(path: Path) -> None:
    flashpack.save_file(without(Small(), "frozen"), path)
    assert flashpack.assign_from_file(Small(), path, strict_params=False) == (["frozen"], [])


def test_missing_and_unexpected_names_are_told_together(path: Path) -> None:
    flashpack.save_file(without(Small(), "frozen", "scale", stranger=torch.ones(1)), path)
    assert refused(Small(), path) == (
        f"{path}: Missing 1 parameters: ['frozen']; Could not assign 1 names: ['stranger']"
    )
    assert refused(Small(), path, strict=True) == (
        f"{path}: Missing 1 parameters and 1 buffers: ['frozen'] ['scale']; "
        "Could not assign 1 names: ['stranger']"
    )


def renamed(old: str, new: str) -> dict[str, Tensor]:
    return {
        f"{new}{name}" if not old else name.replace(old, new): each
        for name, each in Small().state_dict().items()
    }


WRAPPERS = {
    "module.": "DataParallel",
    "_orig_mod.": "torch.compile",
    "base_model.model.": "PEFT",
    "module._orig_mod.": "DataParallel",
    "encoder.": "begin with",
    "model.language_model.": "begin with",
}


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_prefix_of_the_file_is_named(prefix: str, path: Path) -> None:
    flashpack.save_file(renamed("", prefix), path)
    said = refused(Small(), path)
    assert "Missing" in said
    assert "Could not assign" in said
    assert f"names of the file {'begin with' if WRAPPERS[prefix] == 'begin with' else 'have'} '" in said
    assert WRAPPERS[prefix] in said


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_prefix_of_the_model_is_named(prefix: str, path: Path) -> None:
    flashpack.pack_to_file(Small(), path)
    model: nn.Module = Small()
    for name in reversed(prefix.strip(".").split(".")):
        model = nn.ModuleDict({name: model})
    said = refused(model, path)
    assert f"names of the model {'begin with' if WRAPPERS[prefix] == 'begin with' else 'have'} '" in said
    assert WRAPPERS[prefix] in said


def test_a_compiled_part_inside_of_the_model_is_named(path: Path) -> None:
    flashpack.save_file(renamed("body.", "body._orig_mod."), path)
    assert "names of the file have '_orig_mod.', as torch.compile makes them" in refused(Small(), path)


def test_close_names_are_named(path: Path) -> None:
    flashpack.save_file(renamed("frozen", "frozne"), path)
    assert refused(Small(), path).endswith("; 'frozne' may be 'frozen'")


@pytest.mark.parametrize("length", [10, 5000])
@pytest.mark.parametrize("character", ["x", "é", "模"])
def test_messages_stay_short(character: str, length: int, path: Path) -> None:
    flashpack.save_file({f"{character * length}{number}": torch.ones(1) for number in range(1500)}, path)
    model = nn.Module()
    for number in range(2000):
        model.register_parameter(f"p{number}{character * length}", nn.Parameter(torch.ones(1)))
        model.register_buffer(f"b{number}{character * length}", torch.ones(1))
    said = refused(model, path, strict=True)
    assert "Missing 2000 parameters and 2000 buffers: ['p0" in said
    assert "Could not assign 1500 names" in said
    assert said.count(" more]") == 3


def test_a_record_that_does_not_fit_is_told_with_the_number_of_others(path: Path) -> None:
    flashpack.pack_to_file(nn.Linear(3, 3), path)
    assert refused(nn.Linear(2, 2), path) == (
        f"Error while assigning from {path}: record 'weight' has shape [3, 3], but the model's tensor has "
        "shape [2, 2] (1 more records do not fit either)"
    )


def test_a_report_stays_short(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flashpack.save_file({f"name{number}": torch.ones(1) for number in range(1500)}, path)
    flashpack.assign_from_file(Small(), path, strict=False, silent=False)
    said = capsys.readouterr().out
    assert "Discarded 1500 names: ['name0', " in said
    assert len(said) < 4096
