"""DTensors and tensor parallelism: every rank reads its own part, and the model computes the same."""

from __future__ import annotations

from pathlib import Path

import flashpack
import pytest
import rank_parts as sharded
import rank_processes as ranks
import torch
from safetensors.torch import save_file as save_safetensors

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


@pytest.mark.parametrize(
    ("name", "size"), [("llama", 2), ("llama", 4), ("tied", 2), ("experts", 2), ("flux", 2), ("flux", 4)]
)
def test_a_tensor_parallel_model_computes_the_same(name: str, size: int, tmp_path: Path) -> None:
    model = sharded.built(name)
    path, expected = tmp_path / "model.flashpack", tmp_path / "expected.pt"
    flashpack.pack_to_file(model, path)
    output = sharded.output_of(model)
    assert output.abs().max() > 0.1
    torch.save(output, expected)
    results = ranks.run(sharded.tensor_parallel, size, str(path), str(expected), name)
    for result in results:
        assert isinstance(result, list), result["failed"]
        difference, part = result
        assert difference < 1e-5
        assert part < 1 / size + 0.25, "the rest are norms and the like, which every rank has"


@pytest.mark.parametrize("size", [2, 4])
def test_packed_projections_are_split_block_by_block(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.flashpack"
    flashpack.pack_to_file(sharded.built("flux"), path)
    results = ranks.run(sharded.packed, size, str(path))
    assert len(set(map(str, results))) == 1, results
    assert isinstance(results[0], int), results


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


def test_other_files_are_read_by_plan_too(tmp_path: Path) -> None:
    tensors = dict(sharded.Large().state_dict())
    save_safetensors(tensors, tmp_path / "model.safetensors")
    flashpack.pack_to_file(tensors, tmp_path / "shards" / "model.flashpack", max_shard_size="1MB")
    for name, prefix in (("body", True), ("rest", False)):
        some = {key: value for key, value in tensors.items() if key.startswith("body") == prefix}
        flashpack.save_file(some, tmp_path / f"{name}.flashpack")
    assert ranks.run(sharded.from_other_files, 2, str(tmp_path)) == [3, 3]


def test_plans_that_make_no_sense_are_refused(large: Path) -> None:
    for said in ranks.run(sharded.refuses, 2, str(large)):
        assert isinstance(said, list), said["failed"]
        words = ["diagonal", "nothing that", "no tensor-parallel plan", "nobody", "diagonal", "two plans"]
        words += ["without blocks", "do not make up 5", "not a multiple of 2 ranks"]
        assert len(said) == len(words), said
        for text, word in zip(said, words, strict=True):
            assert word in text


def test_two_values_for_a_tied_parameter_are_refused_on_every_rank(tmp_path: Path) -> None:
    embed = torch.ones(8, 3)
    head = embed.clone()
    head[7] = 2  # in the last rank's part
    flashpack.save_file({"embed": embed, "head": head}, tmp_path / "model.flashpack")
    for said in ranks.run(sharded.differing_ties, 2, str(tmp_path / "model.flashpack")):
        assert isinstance(said, list), said["failed"]
        assert all("different values for 'embed' and ['head']" in text for text in said), said


def test_parts_and_shared_loads_are_cast(large: Path) -> None:
    for said in ranks.run(sharded.other_dtypes, 2, str(large)):
        assert isinstance(said, list), said["failed"]
        assert [
            f"is torch.{dtype}, but the model's DTensor" in text
            for dtype, text in zip(("float32", "float16"), said, strict=True)
        ] == [True, True], said


def test_options_for_whole_tensors_are_refused_for_dtensors(large: Path) -> None:
    for said in ranks.run(sharded.dtensors_are_not_shared, 2, str(large)):
        assert isinstance(said, list), said["failed"]
        assert len(said) == 3, said
        assert "leave it out for DTensors" in said[0]
        assert "filled in place" in said[1]
        assert "whole blocks" in said[2]
