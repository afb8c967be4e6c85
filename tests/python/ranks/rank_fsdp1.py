"""What the ranks of the tests of FullyShardedDataParallel do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import flashpack
import pytest
import torch
import torch.distributed as dist
from helpers import assert_same
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy


class Model(nn.Module):
    """Layers of sizes that no number of ranks divides, a tie and buffers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(7, 33), nn.BatchNorm1d(33), nn.Linear(33, 7))
        self.head = nn.Linear(7, 5)
        self.register_buffer("steps", torch.arange(3) + seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


REFUSED = {"shape": "size mismatch for head.weight", "names": "head.bias", "damaged": "is damaged"}
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"keep_flash_ref_on_model": True}, "FSDP1 copies what it loads"),
    ({"dtype": torch.bfloat16}, "FSDP1 keeps the dtypes of the model"),
    ({"use_distributed_loading": True}, "FSDP1's modules load in their own way"),
]


class Outer(nn.Module):
    """A model of which only a part is sharded."""

    def __init__(self, seed: int, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.inner = wrap(Model(seed))
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x))


def wrapped(way: str, orig: bool, seed: int) -> nn.Module:
    wrap = partial(FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=orig)
    if way == "whole":
        return wrap(Model(seed))
    if way == "not sharded":
        return wrap(Model(seed), sharding_strategy=ShardingStrategy.NO_SHARD)
    if way == "part":
        return Outer(seed, wrap)
    return wrap(Model(seed), auto_wrap_policy=ModuleWrapPolicy({nn.Linear}))


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def load(path: str, way: str, orig: bool) -> None:
    """A load gives what load_state_dict gives of the same records, and the model goes on training."""
    records = flashpack.load_file(path)
    ours, theirs = wrapped(way, orig, 1), wrapped(way, orig, 2)
    keys = flashpack.assign_from_file(ours, path)
    assert (keys.missing_keys, keys.unexpected_keys) == ([], [])
    theirs.load_state_dict(records)
    assert_same(whole(ours), whole(theirs))
    assert_same(whole(ours), records)
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(dist.get_rank()))
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).square().sum().backward()
        optimizer.step()
    assert_same(whole(ours), whole(theirs))
    assert any(not torch.equal(value, records[name]) for name, value in whole(ours).items())


def refuse(folder: str, orig: bool) -> None:
    """What does not fit is refused, and changes nothing."""
    model = wrapped("nested", orig, 1)
    before = whole(model)
    for name, words in REFUSED.items():
        with pytest.raises(ValueError, match=words):
            flashpack.assign_from_file(model, f"{folder}/{name}", verify=True)
        assert_same(whole(model), before)
    path = f"{folder}/sound"
    for options, words in OPTIONS:
        with pytest.raises(ValueError, match=words):
            flashpack.assign_from_file(model, path, **options)
        assert_same(whole(model), before)
    keys = flashpack.assign_from_file(model, f"{folder}/names", strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == (["head.bias"], ["other"])
    model(torch.zeros(2, 7)).sum().backward()


def cast(path: str) -> None:
    """The model keeps its dtypes, which is said unless it was asked for."""
    model, records = wrapped("nested", False, 1), flashpack.load_file(path)
    with pytest.warns(UserWarning, match="FSDP1 keeps the dtypes of the model: .*bfloat16"):
        flashpack.assign_from_file(model, path)
    assert_same(whole(model), {name: value.to(whole(model)[name].dtype) for name, value in records.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flashpack.assign_from_file(model, path, dtype="model")
