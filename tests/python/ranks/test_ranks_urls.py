"""Loads of a URL by several ranks: each byte leaves the store once."""

from __future__ import annotations

from pathlib import Path

import faultstore
import flashpack
import pytest
import rank_loads as loads
import rank_processes as ranks
import torch
from helpers import MIB
from hub_server import serving
from hub_store import PushAt
from safetensors.torch import save

# The end of the file, which each rank that reads asks for.
BESIDE = 64 << 10


@pytest.mark.parametrize(("sharded", "strategy"), loads.MODES)
def test_each_byte_is_sent_once(sharded: bool, strategy: str | None, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    flashpack.save_file(loads.tensors(), tmp_path / "bucket/model.flashpack")
    size = (tmp_path / "bucket/model.flashpack").stat().st_size
    with faultstore.serving(tmp_path) as store:
        settings = {**faultstore.NOWHERE, **store.environment(), "FLASHPACK_SHARD_BYTES": str(MIB)}
        url = "s3://bucket/model.flashpack"
        assert ranks.run(loads.read_by_url, 3, url, sharded, strategy, **settings) == [None] * 3
        sent = faultstore.sent(store.take("model.flashpack"))
    assert size - MIB <= sent <= size + 3 * BESIDE


@pytest.mark.parametrize("how", [*loads.MODES, None])
def test_all_ranks_read_one_commit(how: tuple[bool, str | None] | None, tmp_path: Path) -> None:
    """Somebody pushes when one of them has seen the file: safetensors, whose headers stay the same."""
    name = "model.safetensors"
    older, newer = ({name: save({"l.weight": torch.full((6, 100_000), value)})} for value in (1.0, -1.0))
    with serving() as hub:
        hub.add("tiny/model", older)
        hub.requests = PushAt(hub, "tiny/model", newer, 2)
        url = f"hf://tiny/model/{name}"
        settings = {**hub.environment(tmp_path), "FLASHPACK_SHARD_BYTES": str(MIB)}
        if how is None:
            values = ranks.run(loads.parts_by_url, 3, url, **settings)
        else:
            values = ranks.run(loads.values_by_url, 3, url, *how, **settings)
        assert hub.repositories["tiny/model"].head.files == newer
    assert values == [[1.0]] * 3
