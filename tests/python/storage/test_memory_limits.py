"""Mapped files that are larger than the memory of their process are read ahead as far as there is room."""

from __future__ import annotations

from pathlib import Path

import cgroups
import flashpack
import pytest
import slowfs
import torch
from helpers import MIB
from processes import python, succeed

LIMIT = 100 * MIB
COUNT, EACH = 60, 10 * MIB

TOUCH = """if True:
    import os, sys, time
    from pathlib import Path
    import flashpack, torch
    path, members, pause = sys.argv[1:]
    flashpack.load_file(path, names=["t0"])  # what starts on first use has started
    Path(members).write_text(str(os.getpid()))
    tensors = flashpack.load_file(path)
    for number, tensor in enumerate(tensors.values()):
        assert tensor.min() == tensor.max() == number
        time.sleep(float(pause))
    print("touched", len(tensors))
"""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A folder with a file six times as large as the memory that there will be."""
    reasons = [reason for reason in (slowfs.missing(), cgroups.missing()) if reason]
    if reasons:
        pytest.skip("; ".join(reasons))
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = {f"t{number}": torch.full((EACH,), number, dtype=torch.uint8) for number in range(COUNT)}
    flashpack.save_file(tensors, folder / "model.flashpack")
    return folder


@pytest.mark.parametrize("pause", [0, 0.03], ids=["at once", "slowly"])
def test_what_is_read_ahead_is_still_there_when_it_is_touched(
    large: Path, tmp_path: Path, pause: float
) -> None:
    with slowfs.mounted(large, tmp_path / "slow", latency_ms=1) as slow, cgroups.limited(LIMIT) as group:
        done = python("-c", TOUCH, slow.folder / "model.flashpack", group.members, pause)
        assert group.kills() == 0
        assert succeed(done) == f"touched {COUNT}\n"
        assert LIMIT // 2 < group.peak() <= LIMIT  # it was of this group
        counts = slow.counts()
    assert COUNT * EACH <= counts.bytes <= COUNT * EACH * 1.1
    assert counts.requests < COUNT * EACH // (MIB // 4)  # page faults alone ask for 128 KiB at a time
