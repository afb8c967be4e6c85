"""On a machine with several NUMA nodes loads to a GPU, and their staging memory, stay on the GPU's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import engine
import fakecuda
import flashpack
import pytest
import sysfs
from engine import assert_arrived, loading, saved

pytestmark = pytest.mark.usefixtures("emulator")

NODE_OF = {"cuda:0": 1, "cuda:1": 0}
BUSES = {"0000:01:00.0": NODE_OF["cuda:0"], "0000:02:00.0": NODE_OF["cuda:1"]}  # as the emulator numbers them


def to_both(folder: str, threads: int) -> None:
    want = engine.pieces(6, 0)
    path = saved(folder, want)
    before = os.sched_getaffinity(0)
    registered = []
    with engine.environment(**{**engine.BUSY, "FLASHPACK_READ_THREADS": str(threads)}):
        for device in [*NODE_OF, *NODE_OF]:
            with loading() as counters:
                got = flashpack.load_file(path, device)
            assert_arrived(got, want, device)
            report = flashpack.last_load()
            assert report is not None
            assert (report.node, os.sched_getaffinity(0)) == (NODE_OF[device], before)
            registered.append(counters["pinned_registers"])
        assert registered[0] and registered[1], (
            "a buffer far away was taken though there was room for a near one"
        )
        assert registered[2:] == [0, 0], "a buffer nearby was not used again"
        with engine.environment(FLASHPACK_NUMA="0"):
            flashpack.load_file(path, "cuda:0")
        report = flashpack.last_load()
        assert report is not None and report.node is None


def test_readers_and_staging_stay_on_the_node_of_the_gpu(tmp_path: Path) -> None:
    halves = sysfs.halves()
    behind = sysfs.with_nodes(tmp_path, dict(enumerate(halves)), BUSES)
    arguments = repr((str(tmp_path), min(map(len, halves))))
    call = [sys.executable, fakecuda.__file__, "--call", __file__, to_both.__name__, arguments]
    fakecuda.run([*map(str, behind), *call], devices=2).check()
