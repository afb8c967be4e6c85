"""A module whose weights were loaded is like any other to torch.compile, torch.export and FSDP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import flashpack
import pytest
import torch
from helpers import assert_same
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


class Block(nn.Module):
    """Two layers that share a weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture(params=[False, True], ids=["lazy", "eager"])
def loaded(request: pytest.FixtureRequest, path: Path) -> tuple[Block, Block]:
    """A model, and another that was loaded from its file."""
    source = Block().eval()
    flashpack.pack_to_file(source, path)
    with torch.device("meta"):
        model = Block().eval()
    flashpack.assign_from_file(model, path, eager=request.param)
    return source, model


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_compiles(loaded: tuple[Block, Block]) -> None:
    source, model = loaded
    x = torch.randn(4, 16)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), source(x))


def test_exports(loaded: tuple[Block, Block]) -> None:
    source, model = loaded
    x = torch.randn(4, 16)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), source(x))


def test_trains_as_the_original(loaded: tuple[Block, Block]) -> None:
    source, model = loaded
    x = torch.randn(8, 16)
    for one in loaded:
        one.train()
        optimizer = torch.optim.AdamW(one.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            one(x).square().sum().backward()
            optimizer.step()
    assert model.second.weight is model.first.weight
    assert_same(model.state_dict(), source.state_dict())


@pytest.mark.usefixtures("one_rank")
def test_shards(loaded: tuple[Block, Block]) -> None:
    source, model = loaded
    fully_shard(model)
    x = torch.randn(4, 16)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    torch.testing.assert_close(model(x), source(x), rtol=0, atol=0)
    whole = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in model.state_dict().items()
    }
    assert_same(whole, source.state_dict())
