"""What the ranks of `test_distributed_checkpoint` do."""

from __future__ import annotations

from typing import Any

import flashpack
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from flashpack.integrations.distributed_checkpoint import FlashPackStorageReader, FlashPackStorageWriter
from helpers import assert_same
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def state(seed: int) -> dict[str, Any]:
    """Of a sharded model that has been trained a step."""
    made = fully_shard(model(seed), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.01 * seed)
    torch.manual_seed(seed)
    made(torch.randn(4, 7)).sum().backward()
    optimizer.step()
    return {
        "model": get_model_state_dict(made),
        "optimizer": get_optimizer_state_dict(made, optimizer),
        "step": 10 * seed,
        "nested": {"name": f"run {seed}", "betas": (0.9, seed)},
    }


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf by its path; DTensors whole."""
    if isinstance(value, dict):
        return {
            name: leaf for key, each in value.items() for name, leaf in flat(each, f"{prefix}/{key}").items()
        }
    if isinstance(value, DTensor):
        return {prefix: value.full_tensor().detach().clone()}
    return {prefix: value.detach().clone() if isinstance(value, torch.Tensor) else value}


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    tensors = [
        {name: each for name, each in flat(side).items() if isinstance(each, torch.Tensor)}
        for side in (one, other)
    ]
    assert_same(*tensors)
    plain = [
        {name: each for name, each in flat(side).items() if not isinstance(each, torch.Tensor)}
        for side in (one, other)
    ]
    assert plain[0] == plain[1]


def save(folder: str) -> None:
    """Twice: the second takes the place of the first."""
    for seed in (3, 1):
        dcp.save(state(seed), storage_writer=FlashPackStorageWriter(folder))
    expected = state(1)
    loaded = state(2)
    dcp.load(loaded, storage_reader=FlashPackStorageReader(folder))
    assert_equal(loaded, expected)
    whole = flat(expected["model"])
    if dist.get_rank() == 0:
        flashpack.save_file(whole, f"{folder}/expected.flashpack")


def save_apart(folder: str) -> str:
    """Without telling each other."""
    try:
        dcp.save({"a": torch.ones(3)}, storage_writer=FlashPackStorageWriter(folder), use_collectives=False)
    except ValueError as error:
        return str(error).partition(": ")[2].partition(": ")[0]
    return "saved"


def load(folder: str) -> None:
    """By any number of ranks."""
    loaded = state(2)
    dcp.load(loaded, storage_reader=FlashPackStorageReader(folder))
    assert_same(flat(loaded["model"]), flashpack.load_file(f"{folder}/expected.flashpack"))
    assert loaded["step"] == 10


def load_model(path: str) -> None:
    """A plain file into a sharded model."""
    made = fully_shard(model(2), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    held = get_model_state_dict(made)
    dcp.load(held, storage_reader=FlashPackStorageReader(path))
    assert_same(
        {name.removeprefix("/"): each for name, each in flat(held).items()}, flashpack.load_file(path)
    )
