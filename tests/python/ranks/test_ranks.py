"""Loads by several ranks: the same bytes on all, each byte read once in all, and no rank left behind."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import flashpack
import pytest
import rank_loads as loads
import rank_processes as ranks
import torch
from helpers import MIB, flip_byte, place_of

SHARD_BYTES = {"FLASHPACK_SHARD_BYTES": str(MIB)}
# Read beside the payload by each rank: the file's end with its footer, for each window again.
BESIDE = 300 << 10


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "model.flashpack"
    flashpack.save_file(loads.tensors(), path)
    return path


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.flashpack"
    flashpack.pack_to_file(loads.Model(), path)
    return path


@pytest.mark.parametrize("size", [2, 4, 8])
def test_every_rank_gets_every_byte_and_the_file_is_read_once(size: int, packed: Path) -> None:
    payload = packed.stat().st_size
    results = ranks.run(loads.read_in_every_mode, size, str(packed), **SHARD_BYTES)
    assert all(isinstance(result, list) for result in results), results
    windows = -(-payload // MIB)
    for mode, (sharded, _) in enumerate(loads.MODES):
        asked = [result[mode] for result in results]
        beside = windows * (128 << 10)
        assert payload - MIB <= sum(asked) <= payload + beside + size * BESIDE, asked
        if sharded:
            most = (windows // size + 1) * MIB
            assert max(asked) <= most + (windows // size + 1) * (128 << 10) + BESIDE, asked
        else:
            assert max(asked[1:]) <= BESIDE, asked


@pytest.mark.parametrize("meta", [False, True], ids=["live", "meta"])
def test_models_of_all_ranks_are_filled(meta: bool, model_file: Path) -> None:
    assert ranks.run(loads.assign_in_every_mode, 3, str(model_file), meta, **SHARD_BYTES) == [None] * 3


@pytest.mark.parametrize("sharded", [False, True], ids=["broadcast", "sharded"])
@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("missing", "FileNotFoundError"),
        ("io", "OSError"),
        ("memory", "MemoryError"),
        ("damaged", "ChecksumError"),
    ],
)
def test_what_fails_on_one_rank_is_raised_on_all(
    how: str, error: str, sharded: bool, packed: Path, tmp_path: Path
) -> None:
    path = packed
    if how == "damaged":
        path = Path(shutil.copy(packed, tmp_path))
        start, length = place_of(path, "large")
        flip_byte(path, start + length // 2)
    results = ranks.run(loads.fails, 4, str(path), how, sharded, **SHARD_BYTES)
    assert [result["type"] for result in results] == [error] * 4, results
    assert all(result["text"] for result in results)


def test_a_rank_with_another_file_is_noticed(packed: Path) -> None:
    flashpack.save_file({"other": torch.ones(5)}, f"{packed}.other")
    results = ranks.run(loads.fails, 4, str(packed), "other", True)
    assert [result["type"] for result in results] == ["FlashPackError"] * 4
    assert all("rank 3 has another file" in result["text"] for result in results)


@pytest.mark.parametrize("sharded", [False, True], ids=["broadcast", "sharded"])
def test_a_rank_that_is_killed_leaves_none_waiting(sharded: bool, packed: Path) -> None:
    results = ranks.run(loads.fails, 4, str(packed), "killed", sharded, **SHARD_BYTES)
    assert results.pop(3 if sharded else 0) == ranks.LOST
    for result in results:
        assert result["type"] == "RuntimeError"
        assert "another rank was lost" in result["text"]
        assert result["seconds"] < ranks.GROUP_SECONDS / 2, "long before the group's own timeout"


def test_no_model_changes_unless_all_fit(model_file: Path) -> None:
    results = ranks.run(loads.fails_by_model, 3, str(model_file))
    assert [kind for kind, _ in results] == ["ValueError"] * 3
    assert all("second.weight" in text for _, text in results)


def test_shards_are_loaded_as_one_file(tmp_path: Path) -> None:
    flashpack.pack_to_file(loads.Model(), tmp_path / "model.flashpack", max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.flashpack"))) > 1
    assert ranks.run(loads.assign_shards, 3, str(tmp_path), **SHARD_BYTES) == [None] * 3


def test_a_folder_that_one_rank_lacks_is_raised_on_all(tmp_path: Path) -> None:
    flashpack.pack_to_file(loads.Model(), tmp_path / "model.flashpack")
    (tmp_path / "empty").mkdir()
    results = ranks.run(loads.misses_the_folder, 3, str(tmp_path))
    assert [isinstance(result, list) and "empty" in result[0] for result in results] == [True] * 3, results


def test_a_load_makes_the_process_group_that_is_missing(model_file: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        model_file.with_name("port").write_text(str(free.getsockname()[1]))
    assert ranks.run(loads.starts_by_itself, 2, str(model_file)) == [2, 2]
