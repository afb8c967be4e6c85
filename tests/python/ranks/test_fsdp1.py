"""FullyShardedDataParallel of torch: models whose parameters are flattened and divided."""

from __future__ import annotations

from pathlib import Path

import flashpack
import pytest
import rank_fsdp1 as fsdp1
import rank_processes as ranks
import torch
from helpers import flip_byte, place_of


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("orig", [False, True], ids=["flat", "orig"])
@pytest.mark.parametrize("way", ["whole", "nested", "not sharded", "part"])
def test_a_load_gives_what_load_state_dict_gives(way: str, orig: bool, size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.flashpack"
    flashpack.pack_to_file(fsdp1.Outer(9, lambda it: it) if way == "part" else fsdp1.Model(9), path)
    assert ranks.run(fsdp1.load, size, str(path), way, orig) == [None] * size


@pytest.mark.parametrize("orig", [False, True], ids=["flat", "orig"])
def test_what_does_not_fit_is_refused_and_changes_nothing(orig: bool, tmp_path: Path) -> None:
    state = fsdp1.Model(9).state_dict()
    flashpack.save_file(state, tmp_path / "sound")
    flashpack.save_file(state, tmp_path / "damaged")
    flip_byte(tmp_path / "damaged", place_of(tmp_path / "damaged", "head.weight")[0])
    flashpack.save_file({**state, "head.weight": torch.zeros(7, 5)}, tmp_path / "shape")
    del state["head.bias"]
    flashpack.save_file({**state, "other": torch.zeros(1)}, tmp_path / "names")
    assert ranks.run(fsdp1.refuse, 2, str(tmp_path), orig) == [None] * 2


def test_dtypes_of_the_model_stay(tmp_path: Path) -> None:
    path = tmp_path / "model.flashpack"
    flashpack.pack_to_file(fsdp1.Model(9), path, torch.bfloat16)
    assert ranks.run(fsdp1.cast, 2, str(path)) == [None] * 2
