"""Loads by several ranks: the same bytes on all, each byte read once in all, and no rank left behind."""

from __future__ import annotations

import shutil
import socket
from itertools import groupby
from pathlib import Path

import faultio
import flashpack
import pytest
import rank_loads as loads
import rank_processes as ranks
import torch
from helpers import MIB, SAFETENSORS_DTYPES, dtype_id, flip_byte, noise, place_of
from safetensors.torch import save_file as save_safetensors

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


@pytest.mark.parametrize("size", [2, 4, 5, 8])
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


def test_any_rank_reads_for_those_that_lack_the_file(tmp_path: Path) -> None:
    tensors = {dtype_id(dtype): noise(dtype, (5, 7), seed) for seed, dtype in enumerate(SAFETENSORS_DTYPES)}
    save_safetensors(tensors, tmp_path / "model.safetensors")
    assert ranks.run(loads.read_from_another_rank, 3, str(tmp_path / "model.safetensors")) == [None] * 3


@pytest.mark.parametrize("sharded", [False, True], ids=["broadcast", "sharded"])
def test_windows_are_read_while_those_before_travel(sharded: bool, packed: Path) -> None:
    events = ranks.run(loads.order_of_events, 3, str(packed), sharded, **SHARD_BYTES)[0]
    windows = -(-packed.stat().st_size // MIB)
    steps = -(-windows // 3) if sharded else windows
    order = [event for event, _ in groupby(events)]
    assert order == ["read", "send", *["read", "sent", "send"] * (steps - 1), "sent"]


@pytest.mark.parametrize("meta", [False, True], ids=["live", "meta"])
def test_models_of_all_ranks_are_filled(meta: bool, model_file: Path) -> None:
    assert ranks.run(loads.assign_in_every_mode, 3, str(model_file), meta, **SHARD_BYTES) == [None] * 3


def test_models_are_built_with_the_arguments_that_the_readers_file_keeps(path: Path) -> None:
    loads.Built(7).save_flashpack(path)
    assert ranks.run(loads.build, 2, str(path)) == [7, 7]


def test_only_what_is_included_is_assigned(model_file: Path) -> None:
    told = ranks.run(loads.assign_only, 2, str(model_file), **SHARD_BYTES)
    assert told == [[f"{model_file}: include: 'third' fits none of 5 tensors"] * 3] * 2


@pytest.fixture
def copies(packed: Path, tmp_path: Path) -> Path:
    """The file, and beside it what one rank may find in its place."""
    path = Path(shutil.copy(packed, tmp_path))
    start, length = place_of(path, "large")
    flip_byte(Path(shutil.copy(packed, f"{path}.damaged")), start + length - 5)  # in the last rank's share
    Path(f"{path}.cut").write_bytes(packed.read_bytes()[:-MIB])
    flashpack.save_file({"other": torch.ones(5)}, f"{path}.other")
    flashpack.save_file({**loads.tensors(), "half": noise(torch.bfloat16, (3, MIB), 1)}, f"{path}.new")
    return path


@pytest.mark.parametrize("sharded", [False, True], ids=["broadcast", "sharded"])
@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("missing", "FileNotFoundError", "missing"),
        ("cut", "FlashPackError", "Bad magic"),
        ("io", "OSError", "Input/output error"),
        ("memory", "MemoryError", "cannot be had"),
        ("damaged", "ChecksumError", "large"),
    ],
)
def test_what_fails_on_one_rank_is_raised_on_all(
    how: str, error: str, says: str, sharded: bool, copies: Path
) -> None:
    env = {**SHARD_BYTES, "LD_PRELOAD": faultio.preload()} if how == "io" else SHARD_BYTES
    results = ranks.run(loads.fails, 4, str(copies), how, sharded, **env)
    assert [result["type"] for result in results] == [error] * 4, results
    assert all(says in result["text"] for result in results), results


@pytest.mark.parametrize("sharded", [False, True], ids=["broadcast", "sharded"])
def test_a_file_that_is_replaced_meanwhile_is_loaded_as_it_was(sharded: bool, copies: Path) -> None:
    assert ranks.run(loads.load_while_replaced, 4, str(copies), sharded, **SHARD_BYTES) == [None] * 4


def test_a_rank_with_another_file_is_noticed(copies: Path) -> None:
    results = ranks.run(loads.fails, 4, str(copies), "other", True)
    assert [result["type"] for result in results] == ["FlashPackError"] * 4
    assert all("rank 3 has another file" in result["text"] for result in results)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("rank", "rank=99"),
        ("local_rank", "LOCAL_RANK"),
        ("names", "different tensors"),
        ("dtypes", "different dtypes"),
    ],
)
def test_a_rank_with_other_settings_is_noticed(how: str, says: str, packed: Path) -> None:
    for said in ranks.run(loads.disagrees, 3, str(packed), how):
        assert isinstance(said, list), said["failed"]
        assert says in said[0]


@pytest.mark.parametrize("sharded", [False, True], ids=["broadcast", "sharded"])
def test_a_rank_that_is_killed_leaves_none_waiting(sharded: bool, packed: Path) -> None:
    results = ranks.run(loads.fails, 4, str(packed), "killed", sharded, **SHARD_BYTES)
    assert results.pop(3 if sharded else 0) == ranks.LOST
    for result in results:
        assert result["type"] == "RuntimeError"
        assert "another rank was lost" in result["text"]
        assert result["seconds"] < ranks.GROUP_SECONDS / 2, "long before the group's own timeout"


def test_a_rank_that_gives_up_while_it_waits_for_data_leaves_none_waiting(copies: Path) -> None:
    first, *others = ranks.run(loads.gives_up, 3, str(copies))
    assert (first["type"], first["text"]) == ("ValueError", "gives up")
    assert all("another rank was lost" in result["text"] for result in others), others
    assert all(result["seconds"] < ranks.GROUP_SECONDS / 2 for result in (first, *others)), (first, others)


def test_a_rank_that_stands_still_is_waited_for_as_long_as_the_user_says(copies: Path) -> None:
    results = ranks.run(loads.stands_still, 4, str(copies), **SHARD_BYTES)
    assert results.pop() == ranks.LOST
    assert all(result["type"] == "RuntimeError" for result in results), results
    assert all("another rank was lost" in result["text"] for result in results), results


def test_no_model_changes_unless_all_fit(model_file: Path) -> None:
    results = ranks.run(loads.fails_by_model, 3, str(model_file))
    assert [kind for kind, _ in results] == ["ValueError"] * 3
    assert all("second.weight" in text for _, text in results)


def test_shards_are_loaded_as_one_file(tmp_path: Path) -> None:
    flashpack.pack_to_file(loads.Model(), tmp_path / "model.flashpack", max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.flashpack"))) > 1
    assert ranks.run(loads.assign_shards, 3, str(tmp_path), **SHARD_BYTES) == [None] * 3


@pytest.mark.parametrize("folder", [False, True], ids=["list", "folder"])
def test_damage_at_the_edge_of_a_window_of_several_files_is_found(folder: bool, tmp_path: Path) -> None:
    """The ranks' windows begin where chunks with a digest do, in the second file as in the first."""
    parts = {name: noise(torch.uint8, (5 * MIB // 2,)) for name in ("first", "second")}
    flashpack.save_file(parts, tmp_path / "model.flashpack", max_shard_size="3MB")
    files = sorted(map(str, tmp_path.glob("*.flashpack")))
    flip_byte(Path(files[1]), 5)
    for said in ranks.run(loads.read_damaged, 3, str(tmp_path) if folder else files, **SHARD_BYTES):
        assert isinstance(said, list), said["failed"]
        assert all("00002-of-00002.flashpack" in text for text in said), said


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
