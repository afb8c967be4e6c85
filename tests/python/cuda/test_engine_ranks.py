"""Ranks with a device each: the same bytes on all. Over gloo, as the emulator has no NCCL."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import engine
import fakecuda
import flashpack
import pytest
import torch
import torch.distributed as dist
from engine import assert_arrived, saved
from flashpack.deserialization import iterate_from_flash_tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

pytestmark = pytest.mark.usefixtures("emulator")
RANKS = 2


def rank_of_two(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS)
    device = f"cuda:{rank}"
    (path,) = Path(folder).glob("kinds/*")
    for sharded in (False, True):
        storage, footer = flashpack.read_flashpack_file_distributed(path, "cuda", sharded=sharded)
        assert_arrived(dict(iterate_from_flash_tensor(storage, footer)), engine.kinds(), device)
    (path,) = Path(folder).glob("net/*.flashpack")
    expected = flashpack.load_file(path)
    net = engine.Net().to(device)
    flashpack.assign_from_file(net, path, use_distributed_loading=True, distributed_sharded=True)
    assert_arrived(net.state_dict(), expected, device)
    assert net.head.weight is net.embed.weight
    engine.assert_no_conflicts()
    shards(path, device)
    dist.destroy_process_group()


def shards(path: Path, device: str) -> None:
    """Each rank gets its part of each tensor."""
    torch.cuda.set_device(device)
    mesh = init_device_mesh("cuda", (RANKS,))
    with torch.device("meta"):
        body = torch.nn.Linear(64, 1000)
    fully_shard(body, mesh=mesh)
    flashpack.assign_from_file(body, path.with_suffix(".body"), device=device)
    whole = flashpack.load_file(path.with_suffix(".body"))
    parts = {name: tensor.chunk(RANKS)[dist.get_rank()] for name, tensor in whole.items()}
    assert_arrived({name: tensor.to_local() for name, tensor in body.state_dict().items()}, parts, device)


@pytest.mark.parametrize("mode", ["strict", "lazy:1"])
def test_two_ranks(mode: str, tmp_path: Path) -> None:
    for name in ("kinds", "net"):
        (tmp_path / name).mkdir()
    saved(str(tmp_path / "kinds"), engine.kinds())
    net = saved(str(tmp_path / "net"), engine.Net())
    saved(str(tmp_path), torch.nn.Linear(64, 1000)).rename(net.with_suffix(".body"))
    with ThreadPoolExecutor(RANKS) as pool:
        done = [
            pool.submit(fakecuda.call, rank_of_two, rank, str(tmp_path), mode=mode, devices=RANKS)
            for rank in range(RANKS)
        ]
    for each in done:
        each.result().check()
