"""DTensors and tensor parallelism: every rank reads its own part, and the model computes the same."""

from __future__ import annotations

from pathlib import Path

import flashpack
import pytest
import rank_parts as sharded
import rank_processes as ranks
import torch

BESIDE = 300 << 10  # footers, and small tensors that every rank has whole


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharded") / "model.flashpack"
    flashpack.pack_to_file(sharded.Large(), path)
    return path


@pytest.mark.parametrize("meta", [False, True], ids=["live", "meta"])
def test_fsdp_ranks_read_their_shards(meta: bool, large: Path) -> None:
    results = ranks.run(sharded.fsdp, 4, str(large), meta)
    for result in results:
        assert "asked" in result, result["failed"]
        assert result["asked"] <= large.stat().st_size / 4 + BESIDE


@pytest.mark.parametrize("size", [2, 4])
def test_a_tensor_parallel_llama_gives_the_same_logits(size: int, tmp_path: Path) -> None:
    model = sharded.llama()
    path, logits = tmp_path / "llama.flashpack", tmp_path / "logits.pt"
    flashpack.pack_to_file(model, path)
    with torch.no_grad():
        torch.save(model(sharded.IDS).logits, logits)
    results = ranks.run(sharded.tensor_parallel, size, str(path), str(logits))
    for result in results:
        assert isinstance(result, list), result["failed"]
        difference, part = result
        assert difference < 1e-5
        assert part < 1 / size + 0.15, "the rest are embeddings and norms, which every rank has"


def test_parts_are_those_of_the_placements(large: Path) -> None:
    assert ranks.run(sharded.placements, 4, str(large)) == [10] * 4


@pytest.mark.parametrize("size", [2, 4])
def test_plans_decide_what_is_read(size: int, large: Path) -> None:
    part = large.stat().st_size / size
    for asked in ranks.run(sharded.by_plan, size, str(large)):
        assert "failed" not in asked, asked["failed"]
        assert part - BESIDE < asked["colwise"] <= part + BESIDE
        # Runs of 2 or 1 KiB with gaps as wide: what lies between is read along with them.
        assert part - BESIDE < asked["rowwise"] <= large.stat().st_size + BESIDE


def test_plans_that_make_no_sense_are_refused(large: Path) -> None:
    for said in ranks.run(sharded.refuses, 2, str(large)):
        assert isinstance(said, list), said["failed"]
        assert len(said) == 6, said
        for text, word in zip(
            said,
            ["diagonal", "nobody", "no tensor-parallel plan", "nobody", "diagonal", "two plans"],
            strict=True,
        ):
            assert word in text


def test_options_for_whole_tensors_are_refused_for_dtensors(large: Path) -> None:
    for said in ranks.run(sharded.dtensors_are_not_shared, 2, str(large)):
        assert isinstance(said, list), said["failed"]
        assert len(said) == 3, said
        assert "leave it out for DTensors" in said[0]
        assert "filled in place" in said[1]
        assert "whole blocks" in said[2]
