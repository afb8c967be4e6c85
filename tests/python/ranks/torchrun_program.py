"""What torchrun starts for test_torchrun.py: a rank on one of two "nodes", each with a file of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import flashpack
import torch
import torch.distributed as dist
from helpers import assert_same, bytes_read
from rank_parts import Large
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def main() -> None:
    """Load in all ways; leaves a file that tells how many bytes this rank has read for each."""
    folder = Path(sys.argv[1])
    path = folder / f"node{os.environ['GROUP_RANK']}" / "model.flashpack"
    asked = [
        replicated(path),
        split(path, hybrid=False),
        split(path, hybrid=True),
        int(os.environ["LOCAL_WORLD_SIZE"]),
    ]
    (folder / f"rank{dist.get_rank()}").write_text(" ".join(map(str, asked)))
    dist.destroy_process_group()


def replicated(path: Path) -> int:
    """Every rank gets the whole, each reads its share: of the file that its node has."""
    model = Large()
    before = bytes_read()
    flashpack.assign_from_file(
        model, path, device="cpu", use_distributed_loading=True, distributed_sharded=True
    )
    asked = bytes_read() - before
    assert_same(model.state_dict(), flashpack.load_file(path))
    return asked


def split(path: Path, hybrid: bool) -> int:
    """Every rank gets its shard, with `hybrid` one within its node."""
    shape = (2, 2) if hybrid else (4,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
    with torch.device("meta"):
        model = Large()
    fully_shard(model, mesh=mesh)
    before = bytes_read()
    flashpack.assign_from_file(model, path, eager=True)
    asked = bytes_read() - before
    expected = flashpack.load_file(path)
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        assert_same({name: whole.detach()}, {name: expected[name]})
    return asked


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
