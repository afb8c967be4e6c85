"""torch.ops.flashpack.* from TorchScript, under torch.compile and torch.export."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flashpack.ops
import pytest
import torch
from helpers import (
    assert_same,
    bits,
    read_footer,
    run_python,
    state_of_a_linear,
    tag_of,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

ops = torch.ops.flashpack


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return state_of_a_linear()


@pytest.fixture
def packed(tensors: dict[str, Tensor], path: Path) -> str:
    flashpack.save_file(tensors, path)
    return str(path)


# TorchScript


class Scripted(nn.Module):
    """A module that fetches its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)

    @torch.jit.export
    def fetch(self, path: str) -> None:
        torch.ops.flashpack.assign(path, ["fc.weight", "fc.bias"], [self.fc.weight, self.fc.bias])


@pytest.fixture
def scripted() -> Iterator[Callable[[Any], Any]]:
    """torch.jit.script, whose deprecation is no concern of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield torch.jit.script


def test_a_scripted_module_assigns_its_own_parameters(
    scripted: Callable[[Any], Any], packed: str, tensors: dict[str, Tensor]
) -> None:
    buffer = io.BytesIO()
    torch.jit.save(scripted(Scripted()), buffer)
    buffer.seek(0)
    module = torch.jit.load(buffer)
    assert bits(module.fc.weight) != bits(tensors["fc.weight"])
    module.fetch(packed)
    assert bits(module.fc.weight) == bits(tensors["fc.weight"])
    assert bits(module.fc.bias) == bits(tensors["fc.bias"])
    x = torch.randn(4, 3)
    assert torch.equal(module(x), nn.functional.linear(x, tensors["fc.weight"], tensors["fc.bias"]))
    assert module.fc.weight.requires_grad


FRESH = """
import sys, warnings, torch
warnings.simplefilter("ignore")
torch.ops.load_library(sys.argv[1])
module = torch.jit.load(sys.argv[2])
before = module.fc.weight.detach().clone()
module.fetch(sys.argv[3])
assert "flashpack" not in sys.modules
assert not torch.equal(before, module.fc.weight)
print(module.fc.weight.detach().flatten().view(torch.int32).tolist())
"""


def test_a_fresh_process_runs_the_saved_module_without_the_package(
    scripted: Callable[[Any], Any], packed: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    saved = tmp_path / "scripted.pt"
    torch.jit.save(scripted(Scripted()), saved)
    told = run_python(FRESH, flashpack.ops.library_path(), saved, packed)
    assert json.loads(told) == tensors["fc.weight"].flatten().view(torch.int32).tolist()


def script_load(path: str) -> Tensor:
    one, two = torch.ops.flashpack.load(path, ["fc.weight", "fc.bias"])
    return one.sum() + two.sum()


def script_state_dict(path: str) -> dict[str, Tensor]:
    names, tensors = torch.ops.flashpack.load(torch.ops.flashpack.open(path), ignore_names=["tied"])
    found: dict[str, Tensor] = {}
    for i in range(len(names)):
        found[names[i]] = tensors[i]
    return found


def script_pack(path: str, tensor: Tensor) -> int:
    torch.ops.flashpack.pack(path, ["a"], [tensor], dtype=torch.float16, metadata=["k", "v"])
    return torch.ops.flashpack.verify(torch.ops.flashpack.open(path))


def script_footer(path: str) -> str:
    return torch.ops.flashpack.describe(torch.ops.flashpack.open(path))


def test_every_op_scripts(
    scripted: Callable[[Any], Any], packed: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    assert torch.equal(scripted(script_load)(packed), script_load(packed))
    del tensors["tied"]
    assert_same(scripted(script_state_dict)(packed), tensors)
    copy = str(tmp_path / "copy.flashpack")
    assert scripted(script_pack)(copy, torch.ones(3)) == 6
    assert_same(flashpack.load_file(copy), {"a": torch.ones(3).half()})
    assert json.loads(scripted(script_footer)(copy)) == read_footer(Path(copy))


def test_errors_keep_their_tag_through_torchscript(scripted: Callable[[Any], Any], tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(RuntimeError) as caught:
        scripted(script_load)(missing)
    assert tag_of(caught.value) == {"kind": "io", "errno": 2, "path": missing}


# Fakes, torch.compile, torch.export


def test_the_fake_of_load_agrees_with_it(packed: str) -> None:
    def outline(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (value.dtype, list(value.shape), value.stride(), value.device)
        return [outline(each) for each in value] if isinstance(value, list | tuple) else value

    names = ["count", "empty", "half"]
    real = ops.load(packed, names)
    with FakeTensorMode():
        fake = ops.load(packed, names)
    assert outline(fake) == outline(real)


@pytest.fixture
def compiled() -> Iterator[Callable[[Any], Any]]:
    torch.compiler.reset()
    yield lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.compiler.reset()


def test_a_compiled_function_loads(compiled: Callable[[Any], Any], packed: str) -> None:
    def function(x: Tensor) -> Tensor:
        weight, bias = ops.load(packed, ["fc.weight", "fc.bias"])
        return x @ weight.t() + bias

    x = torch.randn(4, 3)
    assert torch.equal(compiled(function)(x), function(x))


def test_a_compiled_function_assigns(
    compiled: Callable[[Any], Any], packed: str, tensors: dict[str, Tensor]
) -> None:
    def function(weight: Tensor, x: Tensor) -> Tensor:
        ops.assign(packed, ["fc.weight"], [weight])
        return x @ weight.t()

    weight, x = torch.zeros(2, 3), torch.randn(4, 3)
    result = compiled(function)(weight, x)
    assert torch.equal(result, x @ tensors["fc.weight"].t())
    assert bits(weight) == bits(tensors["fc.weight"])


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_a_compiled_function_packs(used: bool, compiled: Callable[[Any], Any], path: Path) -> None:
    destination = str(path)  # not in what is traced: some releases cannot

    def function(x: Tensor) -> Tensor:
        doubled = x * 2
        ops.pack(destination, ["doubled"], [doubled])
        return doubled if used else x + 1

    x = torch.randn(5)
    result = compiled(function)(x)
    assert torch.equal(result, x * 2 if used else x + 1)
    assert_same(flashpack.load_file(path), {"doubled": x * 2})


def test_an_exported_program_loads(packed: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weight, bias = ops.load(packed, ["fc.weight", "fc.bias"])
            return nn.functional.linear(x, weight, bias)

    x = torch.randn(4, 3)
    program = torch.export.export(Model(), (x,))
    assert "flashpack.load" in str(program.graph)
    assert torch.equal(program.module()(x), Model()(x))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    assert torch.equal(torch.export.load(buffer).module()(x), Model()(x))


def test_an_exported_program_assigns(packed: str, tensors: dict[str, Tensor]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.zeros(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            ops.assign(packed, ["fc.weight"], [self.weight])
            return x @ self.weight.t()

    x = torch.randn(4, 3)
    program = torch.export.export(Model(), (x,))
    assert torch.equal(program.module()(x), x @ tensors["fc.weight"].t())


@pytest.mark.parametrize("stored", [torch.ones(4, dtype=torch.int64), torch.ones(4).half(), torch.ones(5)])
def test_assign_changes_nothing_when_the_last_tensor_does_not_fit(stored: Tensor, path: Path) -> None:
    flashpack.save_file({"a": torch.ones(4), "b": stored}, path)
    first, last = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    with pytest.raises(RuntimeError) as caught:
        ops.assign(str(path), ["a", "b"], [first, last])
    assert tag_of(caught.value)["kind"] == "argument"
    assert not first.any()
    sparse = torch.zeros(4).to_sparse()
    with pytest.raises(RuntimeError):
        ops.set_data([first, sparse], [torch.ones(4), torch.ones(4)])
    assert not first.any()


def test_assigning_one_record_to_two_tensors_does_not_tie_them(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(4)}, path)
    one, other = torch.zeros(4), torch.zeros(4)
    ops.assign(str(path), ["a", "a"], [one, other])
    one.add_(1)
    assert (one.tolist(), other.tolist()) == ([2.0] * 4, [1.0] * 4)


def test_what_a_trace_could_not_know_is_refused(packed: str) -> None:
    with FakeTensorMode():
        right, shape = torch.zeros(2, 3), torch.zeros(3, 2)
        dtype = torch.zeros(2, 3).double()
        ops.assign(packed, ["fc.weight"], [right])
        ops.set_data([right], [torch.ones(2, 3)])
        for wrong in (shape, dtype):
            for call in (
                lambda wrong=wrong: ops.assign(packed, ["fc.weight"], [wrong]),
                lambda wrong=wrong: ops.set_data([right], [wrong]),
            ):
                with pytest.raises(RuntimeError, match="cannot be traced") as caught:
                    call()
                assert tag_of(caught.value)["kind"] == "argument"


def test_fakes_are_on_the_device_asked_for(packed: str) -> None:
    device = torch.device("cuda", 0)
    with FakeTensorMode():
        loaded = ops.load(packed, ["half"], device=device)
    assert {tensor.device for tensor in loaded} == {device}


def test_fakes_of_the_ops_without_results(packed: str) -> None:
    with FakeTensorMode():
        assert len(ops.pinned(release=True)) == 3
    with pytest.raises(RuntimeError, match="meta device"):
        ops.assign(packed, ["half"], [torch.empty(5, dtype=torch.float16, device="meta")])
