"""Loads of a URL by several ranks: each byte leaves the store once."""

from __future__ import annotations

from pathlib import Path

import faultstore
import flashpack
import pytest
import rank_loads as loads
import rank_processes as ranks
from helpers import MIB

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
