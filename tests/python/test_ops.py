"""torch.ops.flashpack.*: called directly, from TorchScript, under torch.compile and torch.export."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flashpack.ops
import pytest
import torch
from flashpack import _ops, _progress
from flashpack._native import new_counter
from helpers import (
    MIB,
    assert_same,
    bits,
    block_by_block,
    flip_byte,
    listing,
    noise,
    place_of,
    read_footer,
    read_payload,
    run_python,
    write_file,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

ops = torch.ops.flashpack
BOTH = pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    weight = torch.randn(2, 3)
    return {
        "fc.weight": weight,
        "tied": weight,
        "fc.bias": torch.randn(2),
        "half": noise(torch.float16, (5,)),
        "count": torch.tensor(2301),
        "empty": torch.empty(0, 4),
    }


@pytest.fixture
def packed(tensors: dict[str, Tensor], path: Path) -> str:
    flashpack.save_file(tensors, path)
    return str(path)


def tag_of(error: BaseException) -> dict[str, Any]:
    """The machine-readable end of an op's error."""
    tail = str(error).rpartition(" [flashpack:")[2]
    tag: dict[str, Any] = json.JSONDecoder().raw_decode(tail)[0]
    return tag


# Reading


def test_footer_is_the_text_in_the_file(packed: str) -> None:
    text = ops.footer(packed)
    data = Path(packed).read_bytes()
    assert text.encode() == data[-16 - len(text.encode()) : -16]


@BOTH
def test_load_gives_tensors_in_the_order_of_the_names(
    eager: bool, packed: str, tensors: dict[str, Tensor]
) -> None:
    names = ["count", "tied", "fc.weight", "empty"]
    loaded = ops.load(packed, names, eager=eager)
    assert_same(dict(zip(names, loaded, strict=True)), {name: tensors[name] for name in names})
    assert loaded[1].data_ptr() == loaded[2].data_ptr()
    assert ops.load(packed, [], eager=eager) == []


@BOTH
def test_state_dict_gives_all_that_is_not_ignored(
    eager: bool, packed: str, tensors: dict[str, Tensor]
) -> None:
    names, loaded = ops.state_dict(packed, eager=eager)
    assert names == [record["name"] for record in read_footer(Path(packed))["index"]]
    assert_same(dict(zip(names, loaded, strict=True)), tensors)
    names, loaded = ops.state_dict(
        packed, ignore_names=["tied"], ignore_prefixes=["co", "em"], ignore_suffixes=["bias"], eager=eager
    )
    assert sorted(names) == ["fc.weight", "half"]
    assert len(loaded) == 2


@BOTH
def test_blocks_gives_one_flat_tensor_per_macroblock(eager: bool, packed: str) -> None:
    blocks = ops.blocks(packed, eager=eager)
    footer = read_footer(Path(packed))
    expected = [(block["dtype"], [block["length_elems"]]) for block in footer["macroblocks"]]
    assert [(str(block.dtype)[6:], list(block.shape)) for block in blocks] == expected


def test_verify_gives_the_bytes_it_checked(packed: str) -> None:
    assert ops.verify(packed) == len(read_payload(Path(packed)))


# Writing


def test_assign_replaces_storage_in_place(packed: str, tensors: dict[str, Tensor]) -> None:
    model = nn.Linear(3, 2)
    weight, bias = model.weight, model.bias
    ops.assign(packed, ["fc.weight", "fc.bias"], [weight, bias])
    assert model.weight is weight
    assert weight.requires_grad
    assert weight.is_leaf
    assert_same(
        {"fc.weight": weight, "fc.bias": bias}, {name: tensors[name] for name in ("fc.weight", "fc.bias")}
    )
    model(torch.ones(1, 3)).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("names", "shapes", "kind"),
    [
        (["fc.weight", "fc.bias"], [(2, 3), (3,)], "argument"),
        (["fc.weight", "fc.bias"], [(2, 3), (2, 1)], "argument"),
        (["fc.weight", "nobody"], [(2, 3), (2,)], "argument"),
        (["fc.weight"], [(2, 3), (2,)], "argument"),
    ],
    ids=["size", "dimensions", "name", "count"],
)
def test_assign_checks_before_it_changes(
    names: list[str], shapes: list[tuple[int, ...]], kind: str, packed: str
) -> None:
    targets = [torch.zeros(shape) for shape in shapes]
    with pytest.raises(RuntimeError) as caught:
        ops.assign(packed, names, targets)
    assert tag_of(caught.value)["kind"] == kind
    assert all(target.eq(0).all() for target in targets)
    assert [target.shape for target in targets] == [torch.Size(shape) for shape in shapes]


def test_tensors_without_memory_are_refused(packed: str) -> None:
    target, nowhere = torch.zeros(2, 3), torch.empty(2, device="meta")
    before = Path(packed).read_bytes()
    for call in (
        lambda: ops.assign(packed, ["fc.weight", "fc.bias"], [target, nowhere]),
        lambda: ops.set_data([nowhere], [torch.ones(2)]),
        lambda: ops.set_data([target], [nowhere]),
        lambda: ops.pack(packed, ["a"], [nowhere]),
    ):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert tag_of(caught.value)["kind"] == "argument"
    assert target.eq(0).all()
    assert Path(packed).read_bytes() == before


def test_set_data_changes_shape_and_dtype_but_not_identity() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    value = torch.ones(2, 2, dtype=torch.float16)
    ops.set_data([parameter], [value])
    assert_same({"": parameter}, {"": value})
    assert parameter.data_ptr() == value.data_ptr()
    assert parameter.requires_grad
    with pytest.raises(RuntimeError) as caught:
        ops.set_data([parameter], [])
    assert tag_of(caught.value)["kind"] == "argument"


def test_pack(tensors: dict[str, Tensor], path: Path) -> None:
    expected = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    ops.pack(
        str(path),
        list(tensors),
        list(tensors.values()),
        dtype=torch.bfloat16,
        align_bytes=64,
        keep_order=True,
        metadata=["k", "v"],
    )
    footer = read_footer(path)
    assert [record["name"] for record in footer["index"]] == list(block_by_block(expected))
    assert (footer["align_bytes"], footer["metadata"]) == (64, {"k": "v"})
    assert_same(flashpack.load_file(path), expected)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["a"], {}, "1 names were given for 2 tensors"),
        (["a", "a"], {}, "duplicate name"),
        (["a", "b"], {"align_bytes": -1}, "align_bytes must be >= 0"),
        (["a", "b"], {"metadata": ["odd"]}, "metadata"),
        (["a", "b"], {"dtype": torch.int8}, "Unsupported dtype"),
    ],
)
def test_pack_refuses(names: list[str], options: dict[str, Any], message: str, path: Path) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        ops.pack(str(path), names, [torch.ones(1), torch.ones(1)], **options)
    assert tag_of(caught.value)["kind"] == "argument"
    assert listing(path.parent) == set()


# Errors, progress, cancelling

CALLS: dict[str, Callable[..., Any]] = {
    "load": lambda path, **options: ops.load(path, ["half"], eager=True, verify=True, **options),
    "state_dict": lambda path, **options: ops.state_dict(path, eager=True, **options),
    "blocks": lambda path, **options: ops.blocks(path, eager=True, **options),
    "verify": lambda path, **options: ops.verify(path, **options),
    "pack": lambda path, **options: ops.pack(path, ["a"], [torch.zeros(MIB)], **options),
}
READING = ["load", "state_dict", "blocks", "verify"]
EVERY_CALL = pytest.mark.parametrize("call", CALLS)


@pytest.mark.parametrize("call", READING)
def test_errors_are_runtime_errors_with_a_tag(call: str, packed: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(RuntimeError) as caught:
        CALLS[call](missing)
    assert tag_of(caught.value) == {"kind": "io", "errno": 2, "path": missing}
    flip_byte(Path(packed), place_of(Path(packed), "half")[0])
    with pytest.raises(RuntimeError, match="chunk 0") as caught:
        CALLS[call](packed)
    assert tag_of(caught.value) == {"kind": "checksum", "errno": None, "path": packed}
    Path(packed).write_bytes(b"junk" * 10)
    with pytest.raises(RuntimeError, match="Bad magic") as caught:
        CALLS[call](packed)
    assert tag_of(caught.value) == {"kind": "format", "errno": None, "path": packed}


@EVERY_CALL
def test_progress_counts_to_its_total(call: str, packed: str) -> None:
    progress = torch.tensor([5, 5, 0])
    CALLS[call](packed, progress=progress)
    done, total, cancel = progress.tolist()
    assert done == total > 0
    assert cancel == 0
    if call in ("state_dict", "blocks", "verify", "pack"):
        assert total >= sum(record["length"] for record in read_footer(Path(packed))["index"][:1])


@EVERY_CALL
def test_the_cancel_word_stops_the_work(call: str, packed: str) -> None:
    before = Path(packed).read_bytes()
    with pytest.raises(RuntimeError, match="cancelled") as caught:
        CALLS[call](packed, progress=torch.tensor([0, 0, 1]))
    assert tag_of(caught.value)["kind"] == "cancelled"
    assert Path(packed).read_bytes() == before
    assert listing(Path(packed).parent) == {Path(packed).name}


@EVERY_CALL
@pytest.mark.parametrize(
    "progress",
    [torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)[::2]],
    ids=["dtype", "length", "strides"],
)
def test_progress_must_be_three_words(call: str, progress: Tensor, packed: str) -> None:
    before = Path(packed).read_bytes()
    with pytest.raises(RuntimeError, match="progress must be"):
        CALLS[call](packed, progress=progress)
    assert Path(packed).read_bytes() == before


def test_an_interrupt_waits_for_the_worker_and_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_progress, "INLINE_BYTES", 0)
    monkeypatch.setattr(_progress, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        flashpack.save_file({"a": torch.zeros(4 * MIB)}, path)
    assert listing(path.parent) <= {path.name}


def test_the_cancelled_op_is_an_interrupt_in_python(packed: str) -> None:
    counter = new_counter()
    counter[2] = 1
    on_cpu = torch.device("cpu")
    with pytest.raises(KeyboardInterrupt):
        _ops.state_dict(packed, {}, device=on_cpu, eager=True, verify=None, counter=counter)


@pytest.mark.parametrize("silent", [True, False, None])
def test_long_calls_run_in_a_thread_with_the_same_result(
    silent: bool | None, path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Tensor]
) -> None:
    monkeypatch.setattr(_progress, "INLINE_BYTES", 0)
    monkeypatch.setattr(_progress, "_QUIET_SECONDS", 0.0)
    with torch.inference_mode():
        flashpack.pack_to_file(tensors, path, silent=silent)
        assert_same(flashpack.load_file(path, eager=True), tensors)
    model = nn.Linear(3, 2)
    names = ["tied", "half", "count", "empty"]
    flashpack.save_file({"weight": tensors["fc.weight"], "bias": tensors["fc.bias"]}, path)
    flashpack.assign_from_file(model, path, eager=True, silent=bool(silent), ignore_names=names)
    assert not model.weight.is_inference()
    flip_byte(path, 0)
    with pytest.raises(flashpack.ChecksumError):
        flashpack.load_file(path, eager=True)


def test_many_threads_call_ops_at_once(packed: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    def work(number: int) -> None:
        names, loaded = ops.state_dict(packed, eager=bool(number % 2))
        copy = str(tmp_path / f"{number}.flashpack")
        ops.pack(copy, names, loaded)
        assert ops.verify(copy) == ops.verify(packed)
        target = nn.Parameter(torch.zeros(2, 3))
        ops.assign(copy, ["tied"], [target])
        assert bits(target) == bits(tensors["tied"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(32)))


def test_the_library_may_be_loaded_again(packed: str) -> None:
    torch.ops.load_library(flashpack.ops.library_path())
    assert ops.verify(packed) > 0


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
    names, tensors = torch.ops.flashpack.state_dict(path, ignore_names=["tied"])
    found: dict[str, Tensor] = {}
    for i in range(len(names)):
        found[names[i]] = tensors[i]
    return found


def script_pack(path: str, tensor: Tensor) -> int:
    torch.ops.flashpack.pack(path, ["a"], [tensor], dtype=torch.float16, metadata=["k", "v"])
    return torch.ops.flashpack.verify(path)


def script_footer(path: str) -> str:
    return torch.ops.flashpack.footer(path)


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


@pytest.mark.parametrize("call", ["load", "state_dict", "blocks", "verify", "footer"])
def test_fakes_agree_with_the_ops(call: str, packed: str) -> None:
    args = (packed, ["count", "empty", "half"]) if call == "load" else (packed,)

    def outline(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (value.dtype, list(value.shape), value.stride(), value.device)
        return [outline(each) for each in value] if isinstance(value, list | tuple) else value

    real = getattr(ops, call)(*args)
    with FakeTensorMode():
        fake = getattr(ops, call)(*args)
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


def test_a_compiled_function_takes_blocks(compiled: Callable[[Any], Any], packed: str) -> None:
    def function(x: Tensor) -> Tensor:
        return x + ops.blocks(packed)[0].sum()

    x = torch.randn(4)
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


@pytest.mark.parametrize("algorithm", [None, "other"])
def test_the_fake_of_verify_counts_what_is_checked(algorithm: str | None, packed: str) -> None:
    footer = read_footer(Path(packed))
    if algorithm is None:
        del footer["checksums"]
    else:
        footer["checksums"]["algorithm"] = algorithm
    write_file(Path(packed), read_payload(Path(packed)), footer)
    with FakeTensorMode():
        assert ops.verify(packed) == 0
    assert ops.verify(packed) == 0


def test_fakes_are_on_the_device_asked_for(packed: str) -> None:
    device = torch.device("cuda", 0)
    with FakeTensorMode():
        loaded = ops.load(packed, ["half"], device=device)
        loaded += ops.state_dict(packed, device=device)[1] + ops.blocks(packed, device=device)
    assert {tensor.device for tensor in loaded} == {device}


def test_fakes_of_the_ops_without_results(packed: str) -> None:
    with FakeTensorMode():
        ops.load_into(packed, ["half"], [torch.zeros(5).half()])
        ops.release_pinned_pool()
        assert len(ops.pinned_usage()) == 3
    with pytest.raises(RuntimeError, match="meta device"):
        ops.load_into(packed, ["half"], [torch.empty(5, dtype=torch.float16, device="meta")])


def test_a_compiled_function_fills_and_releases(compiled: Callable[[Any], Any], packed: str) -> None:
    def function(half: Tensor, x: Tensor) -> Tensor:
        ops.load_into(packed, ["half"], [half])
        ops.release_pinned_pool()
        return x + half

    half = torch.zeros(5).half()
    result = compiled(function)(half, torch.zeros(5).half())
    expected = flashpack.load_file(packed)["half"]
    assert bits(half) == bits(expected)
    assert torch.equal(result.isnan(), expected.isnan())
