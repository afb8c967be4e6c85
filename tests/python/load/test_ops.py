"""torch.ops.flashpack.*: called directly, from TorchScript, under torch.compile and torch.export."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flashpack.ops
import pytest
import torch
from flashpack._core import ops as _ops
from flashpack._core import progress as _progress
from flashpack._core.native import new_counter
from helpers import (
    MIB,
    assert_same,
    bits,
    block_by_block,
    flip_byte,
    listing,
    place_of,
    read_footer,
    read_payload,
    state_of_a_linear,
    tag_of,
)
from torch import Tensor, nn

ops = torch.ops.flashpack
BOTH = pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return state_of_a_linear()


@pytest.fixture
def packed(tensors: dict[str, Tensor], path: Path) -> str:
    flashpack.save_file(tensors, path)
    return str(path)


# Reading


def test_describe_gives_the_text_in_the_file(packed: str) -> None:
    text = ops.describe(ops.open(packed))
    data = Path(packed).read_bytes()
    assert text.encode() == data[-16 - len(text.encode()) : -16]


@BOTH
def test_load_gives_tensors_in_the_order_of_the_names(
    eager: bool, packed: str, tensors: dict[str, Tensor]
) -> None:
    names = ["count", "tied", "fc.weight", "empty"]
    for load, model in ((ops.load, packed), (ops.load.names, ops.open(packed))):
        loaded = load(model, names, eager=eager)
        assert_same(dict(zip(names, loaded, strict=True)), {name: tensors[name] for name in names})
        assert loaded[1].data_ptr() == loaded[2].data_ptr()
        assert load(model, [], eager=eager) == []


@BOTH
def test_load_gives_all_that_is_not_ignored(eager: bool, packed: str, tensors: dict[str, Tensor]) -> None:
    model = ops.open(packed)
    names, loaded = ops.load.ignoring(model, eager=eager)
    assert names == [record["name"] for record in read_footer(Path(packed))["index"]]
    assert_same(dict(zip(names, loaded, strict=True)), tensors)
    names, loaded = ops.load.ignoring(
        model, ignore_names=["tied"], ignore_prefixes=["co", "em"], ignore_suffixes=["bias"], eager=eager
    )
    assert sorted(names) == ["fc.weight", "half"]
    assert len(loaded) == 2


@BOTH
def test_load_blocks_gives_one_flat_tensor_per_macroblock(eager: bool, packed: str) -> None:
    blocks = ops.load.blocks(ops.open(packed), eager=eager)
    footer = read_footer(Path(packed))
    expected = [(block["dtype"], [block["length_elems"]]) for block in footer["macroblocks"]]
    assert [(str(block.dtype)[6:], list(block.shape)) for block in blocks] == expected


def test_verify_gives_the_bytes_it_checked(packed: str) -> None:
    assert ops.verify(ops.open(packed)) == len(read_payload(Path(packed)))


# What is documented


def test_the_documented_schemas_are_those_registered() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "operators.md"
    block = page.read_text().partition("```text\n")[2].partition("```")[0]
    documented = {" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", block.strip())}
    schemas = [str(schema) for schema in torch._C._jit_get_all_schemas()]
    ours = {schema.removeprefix("flashpack::") for schema in schemas if schema.startswith("flashpack::")}
    assert documented == ours


# Open models


def test_an_open_model_outlives_its_path(packed: str, tensors: dict[str, Tensor]) -> None:
    model = ops.open(packed)
    Path(packed).unlink()
    flashpack.save_file({"half": torch.zeros(1)}, packed)
    for eager in (False, True):
        assert_same(dict(zip(*ops.load.ignoring(model, eager=eager), strict=True)), tensors)
    assert ops.verify(model) > 0


def test_a_model_is_closed_with_the_last_reference(packed: str, tensors: dict[str, Tensor]) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    model, other = ops.open(packed), ops.open(packed)
    number, again = model.clone(), model
    assert len(list(descriptors.iterdir())) == before + 2
    del model
    assert bits(ops.load.names(again, ["half"])[0]) == bits(tensors["half"])
    del again
    assert len(list(descriptors.iterdir())) == before + 1
    with pytest.raises(RuntimeError, match="was closed") as caught:
        ops.describe(number)
    assert tag_of(caught.value)["kind"] == "argument"
    assert other[1:].tolist() == [Path(packed).stat().st_size, 1, 0], "bytes and number of its files"


@pytest.mark.parametrize(
    "made_up",
    [torch.zeros(3, dtype=torch.int64), torch.tensor([-1, 0, 1]), torch.tensor([1 << 62, 0, 1])],
    ids=["zero", "negative", "large"],
)
def test_numbers_that_are_made_up_open_nothing(made_up: Tensor) -> None:
    for call in (ops.describe, ops.verify, ops.load.ignoring, ops.load.blocks):
        with pytest.raises(RuntimeError, match="no open model"):
            call(made_up)


@pytest.mark.parametrize(
    "other",
    [torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)[::2]],
    ids=["dtype", "length", "strides"],
)
def test_other_tensors_are_no_models(other: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"no open model: torch\.ops\.flashpack\.open gives them"):
        ops.describe(other)


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
    "all": lambda path, **options: ops.load.ignoring(ops.open(path), eager=True, **options),
    "blocks": lambda path, **options: ops.load.blocks(ops.open(path), eager=True, **options),
    "verify": lambda path, **options: ops.verify(ops.open(path), **options),
    "pack": lambda path, **options: ops.pack(path, ["a"], [torch.zeros(MIB)], **options),
}
READING = ["load", "all", "blocks", "verify"]
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
    if call != "load":
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
        _ops.load_all(ops.open(packed), {}, device=on_cpu, eager=True, verify=None, counter=counter)


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
    model = ops.open(packed)

    def work(number: int) -> None:
        names, loaded = ops.load.ignoring(model, eager=bool(number % 2))
        copy = str(tmp_path / f"{number}.flashpack")
        ops.pack(copy, names, loaded)
        assert ops.verify(ops.open(copy)) == ops.verify(model)
        target = nn.Parameter(torch.zeros(2, 3))
        ops.assign(copy, ["tied"], [target])
        assert bits(target) == bits(tensors["tied"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(32)))


def test_the_library_may_be_loaded_again(packed: str) -> None:
    torch.ops.load_library(flashpack.ops.library_path())
    assert ops.verify(ops.open(packed)) > 0
