"""What the ranks of the tests of DTensors and tensor parallelism do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flashpack
import pytest
import torch
import torch.distributed as dist
from flashpack._dtensors import load_local
from helpers import MIB, assert_same, bytes_read
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from transformers import LlamaConfig, LlamaForCausalLM


class Large(nn.Module):
    """16 MiB and change; sizes that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(1 << 10, (4 << 10) + 3)
        self.head = nn.Linear(67, 5)
        self.register_buffer("steps", torch.arange(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, :67])


def fsdp(path: str, meta: bool) -> dict[str, Any]:
    """The values of a sharded model, its output and its next step, and the bytes that this rank read."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.device("meta" if meta else "cpu"):
        model = Large()
    fully_shard(model.body, mesh=mesh)
    fully_shard(model, mesh=mesh)
    before = bytes_read()
    flashpack.assign_from_file(model, path, eager=True)
    asked = bytes_read() - before
    expected = flashpack.load_file(path)
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        assert_same({name: whole.detach()}, {name: expected[name]})
    assert isinstance(model.body.weight, DTensor)
    assert model.body.weight.requires_grad
    train_like(model, expected)
    return {"asked": asked}


def train_like(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """One step of training: the sharded model ends up as a plain one with these weights does."""
    plain = Large()
    plain.load_state_dict(weights)
    x = torch.randn(3, 1 << 10, generator=torch.Generator().manual_seed(dist.get_rank()))
    for one in (model, plain):
        one(x).sum().backward()
    for parameter in plain.parameters():  # as FSDP: the mean of all ranks' gradients
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
    for one in (model, plain):
        torch.optim.SGD(one.parameters(), lr=0.1).step()
    for sharded, parameter in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(sharded.full_tensor(), parameter)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


IDS = torch.arange(24).view(2, 12) * 3 % 96


def tensor_parallel(path: str, logits_path: str) -> list[float]:
    """How far this rank's logits are from those of one process, and the part of the weights that it holds."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.device("meta"):
        model = LlamaForCausalLM(llama().config).eval()
    loaded = flashpack.load_sharded(model, path, mesh)
    rebuild_buffers(model)
    with torch.no_grad():
        logits = model(IDS).logits
    expected = torch.load(logits_path)
    local = flashpack.load_sharded(model.tp_plan, path, mesh, local=True)
    whole = flashpack.load_file(path)
    for name, tensor in loaded.items():
        if isinstance(tensor, DTensor):
            assert_same({name: tensor.full_tensor().detach()}, {name: whole[name]})
            assert_same({name: tensor.to_local().detach()}, {name: local[name]})
    held = sum(tensor.numel() for name, tensor in local.items() if name in whole)
    return [float((logits - expected).abs().max()), held / sum(each.numel() for each in whole.values())]


def rebuild_buffers(model: LlamaForCausalLM) -> None:
    """The rotary frequencies, which no file has: as on the CPU."""
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)


def by_plan(path: str) -> dict[str, Any]:
    """Bytes read for this rank's part of one large tensor, by rows and by columns."""
    size, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh("cpu", (size,))
    whole = flashpack.load_file(path)
    asked = {}
    for style, dim in (("colwise", 0), ("rowwise", 1)):
        before = bytes_read()
        got = flashpack.load_sharded({"body": style}, path, mesh, eager=True)
        asked[style] = bytes_read() - before
        weight = got["body.weight"]
        assert weight.placements == (Shard(dim),)
        parts = whole["body.weight"].chunk(size, dim)
        assert_same({"part": weight.to_local()}, {"part": parts[rank].contiguous()})
        assert isinstance(got["body.bias"], DTensor)
        assert not isinstance(got["head.weight"], DTensor)
        assert_same({"head": got["head.weight"]}, {"head": whole["head.weight"]})
    assert whole["body.weight"].nbytes > MIB
    return asked


def refuses(path: str) -> list[str]:
    """What load_sharded says to plans that make no sense."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    loads = [
        ({"body": "diagonal"}, None),
        ({"nobody": "colwise"}, None),
        (Large(), None),
        (Large(), {"nobody": "colwise"}),
        (Large(), {"body": "diagonal"}),
        ({"body": "colwise"}, {"body": "colwise"}),
    ]
    return [refusal(flashpack.load_sharded, target, path, mesh, tp_plan=tp_plan) for target, tp_plan in loads]


def dtensors_are_not_shared(path: str) -> list[str]:
    """What assign_from_file says to options that make no sense for DTensors."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = Large()
    fully_shard(model, mesh=mesh)
    options = ("use_distributed_loading", "in_place", "keep_flash_ref_on_model")
    return [
        refusal(flashpack.assign_from_file, model, path, device="cpu", **{option: True}) for option in options
    ]


def refusal(load: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load(*args, **options)
    return str(caught.value)


def placements(path: str) -> int:
    """Parts of every kind of placement, against torch's own cutting of the whole."""
    line, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    whole = flashpack.load_file(path)["body.weight"]
    cases = [
        (line, [Shard(0)]),
        (line, [Shard(-1)]),
        (line, [Replicate()]),
        (line, [_StridedShard(1, split_factor=2)]),
        (line, [_StridedShard(-1, split_factor=8)]),
        (grid, [Shard(0), Shard(1)]),
        (grid, [Shard(0), Shard(0)]),
        (grid, [Replicate(), Shard(1)]),
        (grid, [_StridedShard(1, split_factor=2), Shard(1)]),
        (grid, [_StridedShard(1, split_factor=4), _StridedShard(0, split_factor=1)]),
    ]
    for mesh, placed in cases:
        expected = distribute_tensor(whole, mesh, placed, src_data_rank=None).to_local()
        wanted = distribute_tensor(whole.to("meta"), mesh, placed, src_data_rank=None)
        got = load_local(
            path, {"body.weight": wanted}, torch.device("cpu"), eager=None, verify=None, silent=True
        )
        assert_same(got, {"body.weight": expected})
    return len(cases)
