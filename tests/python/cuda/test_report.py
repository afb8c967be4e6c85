"""After a load to a device, `last_load` names what held it up."""

from __future__ import annotations

from pathlib import Path

import engine
import fakecuda
import flashpack
import pytest
import torch
from engine import saved
from helpers import MIB

pytestmark = pytest.mark.usefixtures("emulator")


def slow_link(folder: str) -> None:
    path = saved(folder, engine.pieces(32, seed=1))
    Path(path).read_bytes()  # warms the page cache: a disk gets more readers, and they more staging
    flashpack.load_file(path, "cuda")  # makes the staging buffers
    torch.cuda.synchronize()
    with fakecuda.knobs(bw_h2d=0.05e9):
        flashpack.load_file(path, "cuda")
    report = flashpack.last_load()
    assert report is not None
    told = flashpack.explain(path, "cuda")
    assert (report.bytes, report.verified_bytes, report.threads) == (
        told.read_bytes,
        told.verified_bytes,
        told.threads,
    )
    assert report.limit == "device link", report
    assert report.device > report.read
    torch.cuda.synchronize()
    assert fakecuda.counter("pinned_bytes_peak") <= told.staging_bytes + MIB


def test_a_slow_link_is_the_limit(tmp_path: Path) -> None:
    fakecuda.call(slow_link, str(tmp_path)).check()
