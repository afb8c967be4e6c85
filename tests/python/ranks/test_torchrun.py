"""Under torchrun, on two nodes: that these are one machine, only their files' paths do not tell."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import flashpack
import pytest
import rank_parts as parts
from helpers import MIB
from processes import TIMEOUT_SECONDS, environment

BESIDE = 300 << 10
PROGRAM = Path(__file__).with_name("torchrun_program.py")


@pytest.mark.slow
def test_two_nodes_under_torchrun(tmp_path: Path) -> None:
    flashpack.pack_to_file(parts.Large(), tmp_path / "node0" / "model.flashpack")
    shutil.copytree(tmp_path / "node0", tmp_path / "node1")
    size = (tmp_path / "node0" / "model.flashpack").stat().st_size
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ["--nnodes=2", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *common]
    nodes = [
        subprocess.Popen(
            [*torchrun, f"--node-rank={node}", str(PROGRAM), str(tmp_path)],
            env=environment(FLASHPACK_SHARD_BYTES=str(MIB)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    try:
        said = [node.communicate(timeout=TIMEOUT_SECONDS)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    asked = [[int(each) for each in (tmp_path / f"rank{rank}").read_text().split()] for rank in range(4)]
    for replicated, sharded, hybrid, on_this_node in asked:
        assert on_this_node == 2
        assert replicated <= size / 4 + MIB + 5 * BESIDE, "whole chunks, in five windows at most"
        assert sharded <= size / 4 + BESIDE
        assert hybrid <= size / 2 + BESIDE
    assert sum(each[0] for each in asked) >= size - BESIDE
