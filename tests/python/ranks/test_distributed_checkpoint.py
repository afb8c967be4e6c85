"""torch.distributed.checkpoint with FlashPack files: what ranks save, any number of ranks loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flashpack
import pytest
import rank_checkpoints as programs
import rank_processes as ranks
import torch
import torch.distributed.checkpoint as dcp
from flashpack.integrations.distributed_checkpoint import FlashPackStorageReader, FlashPackStorageWriter
from helpers import assert_same, flip_byte
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dcp")
    assert ranks.run(programs.save, 2, str(folder)) == [None] * 2
    return folder


def test_two_ranks_save_and_load(saved: Path) -> None:
    names = {file.name for file in saved.iterdir()} - {"expected.flashpack", "distributed.json"}
    assert sorted(name.rpartition("-")[2] for name in names) == ["00000.flashpack", "00001.flashpack"]
    for name in names:
        flashpack.verify_file(saved / name)


def test_ranks_that_do_not_save_together_are_refused(tmp_path: Path) -> None:
    assert ranks.run(programs.save_apart, 2, str(tmp_path)) == ["ranks save together"] * 2


def test_three_ranks_load_what_two_have_saved(saved: Path) -> None:
    assert ranks.run(programs.load, 3, str(saved)) == [None] * 3


def test_a_plain_file_fills_a_sharded_model(path: Path) -> None:
    flashpack.pack_to_file(programs.model(1), path)
    assert ranks.run(programs.load_model, 2, str(path)) == [None] * 2


STATE: dict[str, Any] = {
    "model": {
        "weight": torch.randn(4, 3),
        "half": torch.randn(2, dtype=torch.bfloat16),
        "none": torch.empty(0, 2),
    },
    "scalar": torch.tensor(3),
    "lr": 0.1,
    "betas": (0.9, float("inf")),
    "groups": [{"params": [0, 1], "name": None}],
}


def empty() -> dict[str, Any]:
    return {
        "model": {name: torch.zeros_like(tensor) for name, tensor in STATE["model"].items()},
        "scalar": torch.tensor(0),
        "lr": 0,
        "betas": (),
        "groups": [{"params": [7, 8], "name": "x"}],
    }


def test_one_process_without_a_group(tmp_path: Path) -> None:
    dcp.save(STATE, storage_writer=FlashPackStorageWriter(tmp_path / "made", checksum="blake3"))
    loaded = empty()
    dcp.load(loaded, storage_reader=FlashPackStorageReader(tmp_path / "made"))
    assert_same(loaded["model"] | {"scalar": loaded["scalar"]}, STATE["model"] | {"scalar": STATE["scalar"]})
    assert [loaded[name] for name in ("lr", "betas", "groups")] == [
        STATE[name] for name in ("lr", "betas", "groups")
    ]


def test_a_checkpoint_stays_until_another_is_whole(tmp_path: Path) -> None:
    class Interrupted(FlashPackStorageWriter):
        def finish(self, *_: Any) -> None:
            raise KeyboardInterrupt

    def save(value: float, kind: type[FlashPackStorageWriter] = FlashPackStorageWriter) -> None:
        state = {name: torch.full((1000,), value) for name in ("weight", "bias")}
        planner = dcp.DefaultSavePlanner(enable_plan_caching=True)  # which gives a save the plan of the first
        dcp.save(state, storage_writer=kind(tmp_path, max_shard_size=4000), planner=planner)

    for value in (1, 2):
        save(value)
        assert len([*tmp_path.iterdir()]) == 4  # two shards, their index, the checkpoint's
    with pytest.raises(CheckpointException):
        save(3, Interrupted)
    loaded = {"weight": torch.zeros(1000), "bias": torch.zeros(1000)}
    dcp.load(loaded, storage_reader=FlashPackStorageReader(tmp_path))
    assert loaded["weight"].unique() == loaded["bias"].unique() == 2


def test_extra_state_and_names_like_those_of_shards(tmp_path: Path) -> None:
    state = {"w@3": torch.ones(3), "w": torch.zeros(3), "_extra_state": torch.arange(4)}
    data = [
        (MetadataIndex("w", torch.Size([3])), WriteItemType.SHARD),
        (MetadataIndex("w@3", torch.Size([0])), WriteItemType.TENSOR),
        (MetadataIndex("_extra_state", torch.Size([0])), WriteItemType.TENSOR),
    ]
    planner = dcp.DefaultSavePlanner()
    planner.set_up_planner(state)
    planner.resolve_data = lambda item: state[item.index.fqn]  # type: ignore[method-assign]
    writer = FlashPackStorageWriter(tmp_path)
    writer.set_up_storage_writer(is_coordinator=True)
    results = writer.write_data(SavePlan([WriteItem(*each) for each in data]), planner).value()
    loaded = flashpack.load_file(tmp_path / results[0].storage_data.file)
    assert_same({it.index.fqn: loaded[it.storage_data.name] for it in results}, state)


def test_what_is_not_plain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException, match="hook: is neither a tensor nor plain"):
        dcp.save(
            {"weight": torch.ones(1), "hook": Path("x")}, storage_writer=FlashPackStorageWriter(tmp_path)
        )
    assert not (tmp_path / "distributed.json").exists()


def test_damage_is_noticed(tmp_path: Path) -> None:
    dcp.save({"weight": torch.ones(1000)}, storage_writer=FlashPackStorageWriter(tmp_path))
    (file,) = tmp_path.glob("*.flashpack")
    flip_byte(file, 100)
    with pytest.raises(CheckpointException, match="chunk 0 is damaged"):
        dcp.load({"weight": torch.zeros(1000)}, storage_reader=FlashPackStorageReader(tmp_path))
    dcp.load({"weight": torch.zeros(1000)}, storage_reader=FlashPackStorageReader(tmp_path, verify=False))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"tensors":{},"values":{},"planner":null,"chunks":[["w",[0],["../x","w",[1]]]]}'],
)
def test_an_index_of_others_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "distributed.json").write_text(text)
    with pytest.raises(flashpack.FlashPackError, match=r"distributed\.json"):
        FlashPackStorageReader(tmp_path).read_metadata()


def test_urls_are_refused() -> None:
    with pytest.raises(ValueError, match="local folders"):
        FlashPackStorageWriter("s3://bucket/run")
    assert not FlashPackStorageReader.validate_checkpoint_id("s3://bucket/run")
