"""What the ranks of the tests of DTensors and tensor parallelism do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flashpack
import pytest
import torch
import torch.distributed as dist
from diffusers import Flux2Transformer2DModel
from diffusers.hooks import tensor_parallel as diffusers_parallel
from flashpack._files.opened import OpenModel
from flashpack._module.dtensors import load_local
from flashpack._ranks.packed import noted_blocks
from helpers import MIB, assert_same, bytes_read
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM


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


SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def llama(tied: bool) -> nn.Module:
    """Attention and feed-forward layers, and embeddings that are split, too."""
    return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))


def experts() -> nn.Module:
    """A mixture of experts, of which each has its gate and its way up in one tensor."""
    sizes = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **sizes, tie_word_embeddings=False))


def flux() -> nn.Module:
    """Packed projections: of gate and linear, of query, key, value and these, of what comes of them."""
    return Flux2Transformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        timestep_guidance_channels=16,
        mlp_ratio=3.0,
        axes_dims_rope=(4, 4, 4, 4),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: llama(tied=False),
    "tied": lambda: llama(tied=True),
    "experts": experts,
    "flux": flux,
}


def built(name: str) -> nn.Module:
    """One of the models, with random weights: none of them ones or zeros."""
    torch.manual_seed(7)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return model


def output_of(model: nn.Module) -> Tensor:
    """What it makes of some input."""
    with torch.no_grad():
        if isinstance(model, Flux2Transformer2DModel):
            noisy, words = torch.arange(48.0).view(1, 6, 8) / 48, torch.arange(72.0).view(1, 3, 24) / 72
            places = {"img_ids": torch.arange(24).view(6, 4) % 5, "txt_ids": torch.arange(12).view(3, 4) % 5}
            time = {"timestep": torch.tensor([0.5]), "guidance": torch.tensor([3.0])}
            return model(noisy, words, **places, **time).sample
        return model(torch.arange(24).view(2, 12) * 3 % 96).logits


def tensor_parallel(path: str, expected: str, name: str) -> list[float]:
    """How far this rank's output is from that of one process, and the part of the weights that it holds."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.device("meta"):
        model = MODELS[name]().eval()
    loaded = flashpack.load_sharded(model, path, mesh)
    if name == "tied":
        assert model.lm_head.weight is model.model.embed_tokens.weight
    rebuild_buffers(model)
    difference = output_of(model) - torch.load(expected)
    whole = flashpack.load_file(path)
    held = 0
    for parameter, tensor in loaded.items():
        if isinstance(tensor, DTensor):
            held += tensor.to_local().numel()
            if noted_blocks(model.get_submodule(parameter.rpartition(".")[0]), "weight") is None:
                assert_same({parameter: tensor.full_tensor().detach()}, {parameter: whole[parameter]})
        elif parameter in whole:
            held += tensor.numel()
    if name != "flux":  # there the modules tell how they are packed, a plan alone does not
        local = flashpack.load_sharded(model.tp_plan, path, mesh, local=True)
        assert_same(local, {key: local_part(tensor) for key, tensor in loaded.items() if key in whole})
    return [float(difference.abs().max()), held / sum(each.numel() for each in whole.values())]


def local_part(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def rebuild_buffers(model: nn.Module) -> None:
    """The rotary frequencies, which no file has: as on the CPU."""
    if hasattr(model, "model"):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)


def packed(path: str) -> int:
    """Packed projections, split as diffusers itself does; a model that it has split is filled as it is."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    theirs, ours = built("flux"), Flux2Transformer2DModel.from_config(built("flux").config)
    for model in (theirs, ours):
        for block, plan in diffusers_parallel._resolve_tp_plan(model, model._tp_plan):
            parallelize_module(block, mesh, diffusers_parallel._styles(plan))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    ours._parallel_config = SimpleNamespace(tensor_parallel_config=object())
    flashpack.assign_from_file(ours, path)
    expected = {name: local_part(tensor) for name, tensor in theirs.state_dict().items()}
    assert_same({name: local_part(tensor) for name, tensor in ours.state_dict().items()}, expected)
    plan = {"*.*.attn.to_qkv_mlp_proj": diffusers_parallel.PackedColwiseParallel([1, 1, 1, 3, 3])}
    name = "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"
    assert_same({name: flashpack.load_sharded(plan, path, mesh, local=True)[name]}, {name: expected[name]})
    return len(expected)


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


def from_other_files(folder: str) -> int:
    """The same parts of safetensors, of shards and of a list of files."""
    size, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh("cpu", (size,))
    path = Path(folder)
    whole = flashpack.load_file(path / "model.safetensors")
    sources = [
        path / "model.safetensors",
        path / "shards",
        [path / "body.flashpack", path / "rest.flashpack"],
    ]
    for source in sources:
        got = flashpack.load_sharded({"body": "colwise"}, source, mesh, local=True)
        parts = {name: whole[name].chunk(size)[rank] for name in ("body.weight", "body.bias")}
        assert_same(got, {**whole, **parts})
        with torch.device("meta"):
            model = Large()
        flashpack.load_sharded(model, source, mesh, tp_plan={"body": "colwise"})
        assert_same(
            {"body.weight": model.body.weight.to_local().detach()}, {"body.weight": parts["body.weight"]}
        )
    return len(sources)


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
        ({"body": diffusers_parallel.PackedColwiseParallel()}, None),
        ({"head": diffusers_parallel.PackedColwiseParallel([2, 2])}, None),
        (Large(), {"head": diffusers_parallel.PackedColwiseParallel([2, 3])}),
    ]
    return [refusal(flashpack.load_sharded, target, path, mesh, tp_plan=tp_plan) for target, tp_plan in loads]


def differing_ties(path: str) -> list[str]:
    """What is said of two values for one tied parameter, split or whole; the model is as it was."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    said = []
    for split, options in ((True, {}), (False, {"use_distributed_loading": True})):
        weight = torch.zeros(8, 3)
        held = nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]) if split else weight)
        model = nn.ParameterDict({"embed": held, "head": held})
        said.append(refusal(flashpack.assign_from_file, model, path, **options))
        local = held.to_local() if isinstance(held, DTensor) else held
        assert not local.any()
        with pytest.warns(UserWarning, match="different values"):
            flashpack.assign_from_file(model, path, strict=False, **options)
        whole = held.full_tensor() if isinstance(held, DTensor) else held
        assert_same({"": whole.detach()}, {"": flashpack.load_file(path)["head"]})
    return said


def other_dtypes(path: str) -> list[str]:
    """Loads of a bfloat16 model from a float32 file: sharded, live and on meta, and by all ranks together."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    stored = flashpack.load_file(path)
    halves = {name: each.bfloat16() if each.is_floating_point() else each for name, each in stored.items()}
    loads: list[tuple[bool, str, dict[str, Any]]] = [
        (True, device, {"dtype": dtype}) for device in ("cpu", "meta") for dtype in ("model", "bfloat16")
    ]
    loads += [
        (False, "cpu", {"use_distributed_loading": True, "distributed_sharded": sharded, "dtype": dtype})
        for sharded in (False, True)
        for dtype in ("model", torch.bfloat16)
    ]
    for split, device, options in loads:
        with torch.device(device):
            model = Large().bfloat16()
        if split:
            fully_shard(model, mesh=mesh)
        flashpack.assign_from_file(model, path, device="cpu", **options)
        state = model.state_dict()
        whole = {
            name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in state.items()
        }
        assert_same({name: each.detach() for name, each in whole.items()}, halves)
    model = fully_shard(Large().bfloat16(), mesh=mesh)
    return [refusal(flashpack.assign_from_file, model, path, dtype=dtype) for dtype in ("file", "float16")]


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
            OpenModel(path),
            {"body.weight": wanted},
            torch.device("cpu"),
            packed={},
            eager=None,
            verify=None,
            silent=True,
        )
        assert_same(got, {"body.weight": expected})
    return len(cases)
