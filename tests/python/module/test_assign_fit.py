"""assign_from_file: nothing changes unless everything fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from helpers import bits, flip_byte, place_of
from small_model import Small, snapshot, without


@pytest.fixture
def source() -> Small:
    torch.manual_seed(1)
    return Small()


@pytest.fixture
def model() -> Small:
    torch.manual_seed(2)
    return Small()


def wrong_last_shape(source: Small, path: Path) -> dict[str, Any]:
    flashpack.save_file(without(source, "scale", scale=torch.ones(2)), path)
    return {}


def wrong_shape_of_the_same_size(source: Small, path: Path) -> dict[str, Any]:
    flashpack.save_file(without(source, "frozen", frozen=torch.ones(3, 1)), path)
    return {}


def wrong_buffer_dtype(source: Small, path: Path) -> dict[str, Any]:
    flashpack.save_file(without(source, "scale", scale=torch.ones((), dtype=torch.int64)), path)
    return {}


def missing_names(source: Small, path: Path) -> dict[str, Any]:
    flashpack.save_file(without(source, "frozen"), path)
    return {}


def strangers(source: Small, path: Path) -> dict[str, Any]:
    flashpack.save_file(without(source, stranger=torch.ones(1)), path)
    return {}


def tied_dtypes_differ(source: Small, path: Path) -> dict[str, Any]:
    head = {"head.weight": source.head.weight.detach().half()}
    flashpack.save_file(without(source, "head.weight") | head, path)
    return {}


def damage(source: Small, path: Path) -> dict[str, Any]:
    flashpack.pack_to_file(source, path)
    flip_byte(path, place_of(path, "frozen")[0])
    return {"eager": True}


def damage_verified(source: Small, path: Path) -> dict[str, Any]:
    return damage(source, path) | {"eager": False, "verify": True}


def damage_with_blocks_kept(source: Small, path: Path) -> dict[str, Any]:
    return damage(source, path) | {"keep_flash_ref_on_model": True}


def bad_structure(source: Small, path: Path) -> dict[str, Any]:
    flashpack.pack_to_file(source, path)
    path.write_bytes(path.read_bytes()[:-1])
    return {}


def no_file(source: Small, path: Path) -> dict[str, Any]:  # noqa: ARG001 (one of the failures)
    return {}


FAILURES: list[tuple[Callable[[Small, Path], dict[str, Any]], type[Exception]]] = [
    (wrong_last_shape, ValueError),
    (wrong_shape_of_the_same_size, ValueError),
    (wrong_buffer_dtype, ValueError),
    (missing_names, ValueError),
    (strangers, ValueError),
    (tied_dtypes_differ, ValueError),
    (damage, flashpack.ChecksumError),
    (damage_verified, flashpack.ChecksumError),
    (damage_with_blocks_kept, flashpack.ChecksumError),
    (bad_structure, flashpack.FlashPackError),
    (no_file, FileNotFoundError),
]


@pytest.mark.parametrize("meta", [False, True], ids=["live", "meta"])
@pytest.mark.parametrize(("prepare", "kind"), FAILURES, ids=lambda value: getattr(value, "__name__", ""))
def test_failure_leaves_the_model_as_it_was(
    prepare: Callable[[Small, Path], dict[str, Any]],
    kind: type[Exception],
    meta: bool,
    source: Small,
    path: Path,
) -> None:
    options = prepare(source, path)
    with torch.device("meta" if meta else "cpu"):
        model = Small()
    kept, attributes = snapshot(model), set(vars(model))
    with pytest.raises(kind):
        flashpack.assign_from_file(model, path, **options)
    assert snapshot(model) == kept
    assert set(vars(model)) == attributes


def test_a_wrong_shape_is_named_with_both_shapes(source: Small, model: Small, path: Path) -> None:
    wrong_last_shape(source, path)
    with pytest.raises(ValueError, match=r"'scale' has shape \[2\].*shape \[\]") as caught:
        flashpack.assign_from_file(model, path)
    assert str(path) in str(caught.value)


def test_damage_is_not_looked_for_in_a_lazy_load(source: Small, model: Small, path: Path) -> None:
    damage(source, path)
    flashpack.assign_from_file(model, path)
    assert bits(model.frozen) != bits(source.frozen)


def test_the_environment_makes_assignments_eager(
    source: Small, model: Small, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(source, path)
    monkeypatch.setenv("FLASHPACK_CPU_PARALLEL_READ", "1")
    with pytest.raises(flashpack.ChecksumError):
        flashpack.assign_from_file(model, path)
    flashpack.assign_from_file(model, path, verify=False)
