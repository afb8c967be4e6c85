"""The smaller functions of flashpack 0.4.5 do what they did there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
import upstream
from flashpack import commands, deserialization, parallel_read, utils
from flashpack.deserialization import MacroblockSpec
from helpers import NOT_IN_0_4_5, assert_same, bits, dtype_id, noise, read_footer, read_payload
from processes import environment, python, succeed
from torch import nn

# Of every dtype of torch: how the packing dtype and numpy's are called, or the error.
DTYPES = """
import json, torch
from flashpack.utils import get_packing_dtype, torch_dtype_to_numpy_dtype

def told(function, dtype):
    try:
        result = function(dtype)
    except ValueError:
        return "ValueError"
    return getattr(result, "__name__", str(result))

dtypes = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
print(json.dumps({
    name: [told(get_packing_dtype, dtype), told(torch_dtype_to_numpy_dtype, dtype)]
    for name, dtype in dtypes.items()
}))
"""


def test_dtypes_as_the_release_gives_them() -> None:
    theirs = json.loads(upstream.run(upstream.install(), DTYPES))
    ours = json.loads(succeed(python("-c", DTYPES)))
    for dtype in NOT_IN_0_4_5:
        name, packed = dtype_id(dtype), f"uint{8 * dtype.itemsize}"
        assert ours.pop(name) == [f"torch.{packed}", packed]
        assert theirs.pop(name) == [f"torch.{name}", "ValueError"]
    assert ours == theirs


@pytest.mark.parametrize("given", ["float32", None])
def test_what_is_no_dtype_has_no_packing_dtype(given: Any) -> None:
    with pytest.raises(ValueError, match="Unsupported dtype"):
        utils.get_packing_dtype(given)


THREADS = [
    *(("0,1,2,3", "", 16, 1, 4), ("0,1,2,3", "", 64, 16, 16), ("0,1,2,3", "", 8, 16, 8)),
    *(("0", "", 0, 1, 1), ("0", "", -4, 1, 1), ("0,1", "1", 64, 1, 64), ("0,1", "on", 0, 1, 1)),
    *(("0,1", "no", 64, 1, 2), ("", "", 16, 1, 8)),
]


@pytest.mark.parametrize(("processors", "free", "requested", "floor", "expected"), THREADS)
def test_read_threads(
    monkeypatch: pytest.MonkeyPatch, processors: str, free: str, requested: int, floor: int, expected: int
) -> None:
    monkeypatch.setenv("FLASHPACK_NO_THREAD_CLAMP", free)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    if processors:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(processors.split(",")))
    else:
        monkeypatch.delattr(os, "sched_getaffinity")
    assert utils.effective_read_threads(requested, floor=floor) == expected


def test_a_malformed_switch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHPACK_NO_THREAD_CLAMP", "maybe")
    with pytest.raises(ValueError, match='FLASHPACK_NO_THREAD_CLAMP is "maybe"'):
        utils.effective_read_threads(4)


def test_zstandard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match="zstandard"):
        utils.require_zstandard()
    monkeypatch.setitem(sys.modules, "zstandard", os)
    assert utils.require_zstandard() is os


GROUP = """
import sys
import torch.distributed as dist
from flashpack.utils import maybe_init_distributed

maybe_init_distributed()
assert not dist.is_initialized()
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
import os
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="1")
os.environ["WORLD_SIZE"] = "2"
if child := os.fork():
    maybe_init_distributed()
    assert (dist.get_rank(), dist.get_world_size()) == (0, 2)
    maybe_init_distributed(world_size=7)
    dist.barrier()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
else:
    maybe_init_distributed(rank=1, world_size=2)
    assert (dist.get_rank(), dist.get_world_size()) == (1, 2)
    dist.barrier()
    os._exit(0)
"""


def test_a_group_is_made_once() -> None:
    clean = dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE"), "")
    succeed(python("-c", GROUP, env=environment(**clean, GLOO_SOCKET_IFNAME="lo", CUDA_VISIBLE_DEVICES="")))


@pytest.mark.parametrize(
    ("set_to", "given", "expected"),
    [
        (None, None, "contiguous"),
        ("windows", None, "windows"),
        (" Windows ", None, "windows"),
        ("windows", "CONTIGUOUS", "contiguous"),
    ],
)
def test_shard_strategies(
    monkeypatch: pytest.MonkeyPatch, set_to: str | None, given: str | None, expected: str
) -> None:
    monkeypatch.setenv("FLASHPACK_SHARD_STRATEGY", set_to or "")
    assert deserialization.resolve_shard_strategy(given) == expected


# Storage and the parallel reader.


@pytest.fixture
def mixed(path: Path) -> Path:
    given = {
        "a": noise(torch.bfloat16, (301,)),
        "b": noise(torch.float32, (7, 5)),
        "c": noise(torch.bool, (3,)),
    }
    flashpack.pack_to_file(given, path)
    return path


def test_backing_arrays_are_the_mapped_file(mixed: Path) -> None:
    storage, _ = deserialization.read_flashpack_file(mixed)
    assert storage.backing_arrays is not None
    assert [array.dtype.name for array in storage.backing_arrays] == ["uint16", "float32", "bool"]
    for array, block in zip(storage.backing_arrays, storage.blocks, strict=True):
        assert array.tobytes() == bits(block)
        assert array.__array_interface__["data"][0] == block.data_ptr()


@pytest.mark.parametrize(("variable", "eager"), [("1", None), ("0", True)])
def test_memory_of_its_own_has_no_backing_arrays(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, variable: str, eager: bool | None
) -> None:
    monkeypatch.setenv("FLASHPACK_CPU_PARALLEL_READ", variable)
    storage, _ = deserialization.read_flashpack_file(mixed, eager=eager)
    assert storage.backing_arrays is None


def specs_of(path: Path) -> list[MacroblockSpec]:
    return [
        MacroblockSpec(
            getattr(torch, block["dtype"]),
            block["offset_bytes"],
            block["length_bytes"],
            block["length_elems"],
        )
        for block in read_footer(path)["macroblocks"]
    ]


def test_reading_into_storage(mixed: Path) -> None:
    specs = specs_of(mixed)
    blocks = [torch.zeros(spec.length_elems, dtype=spec.dtype) for spec in specs]
    parallel_read.parallel_read_into_storage(str(mixed), specs, blocks, torch.device("cpu"))
    payload = read_payload(mixed)
    for spec, block in zip(specs, blocks, strict=True):
        assert bits(block) == payload[spec.offset_bytes : spec.offset_bytes + spec.length_bytes]


def test_reading_into_storage_verifies(mixed: Path) -> None:
    specs = specs_of(mixed)
    with mixed.open("r+b") as file:
        file.write(b"damaged")
    blocks = [torch.zeros(spec.length_elems, dtype=spec.dtype) for spec in specs]
    with pytest.raises(flashpack.ChecksumError):
        parallel_read.parallel_read_into_storage(str(mixed), specs, blocks, torch.device("cpu"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_storage_that_is_no_place_for_its_blocks(mixed: Path, device: str) -> None:
    specs = specs_of(mixed)
    blocks = [torch.zeros(spec.length_elems + (device == "cpu"), dtype=spec.dtype) for spec in specs]
    with pytest.raises(ValueError, match=r"block 0 has \d+ bytes on cpu"):
        parallel_read.parallel_read_into_storage(str(mixed), specs, blocks, torch.device(device))


@pytest.mark.parametrize(
    ("parallel", "on_cpu", "expected"),
    [("", "", (True, True, False)), ("", "1", (True, True, True)), ("0", "1", (False, False, False))],
)
def test_where_threads_read(
    monkeypatch: pytest.MonkeyPatch, parallel: str, on_cpu: str, expected: tuple[bool, ...]
) -> None:
    monkeypatch.setenv("FLASHPACK_PARALLEL_READ", parallel)
    monkeypatch.setenv("FLASHPACK_CPU_PARALLEL_READ", on_cpu)
    on_devices = (parallel_read.parallel_read_supported(torch.device(name)) for name in ("cuda", "cpu"))
    assert (parallel_read.sharded_read_available(), *on_devices) == expected
    assert not parallel_read.parallel_read_supported(torch.device("meta"))


# Conversions of one kind of source.


def test_keywords_that_a_method_takes() -> None:
    def method(a: int, *, b: int = 0) -> None: ...

    def greedy(a: int, **others: int) -> None: ...

    given = {"a": 1, "b": 2, "c": 3}
    assert commands.filter_kwargs_for_method(given, method) == {"a": 1, "b": 2}
    assert commands.filter_kwargs_for_method(given, greedy) == given


def test_a_state_dict_a_model_and_a_file_are_converted(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    expected = {"bias": model.bias.detach().half()}
    options: tuple[Any, ...] = ("float16", ["weight"], None, None, True)
    for convert, source in (
        (commands.convert_to_flashpack_from_state_dict, model.state_dict()),
        (commands.convert_to_flashpack_from_model, model),
        (commands.convert_to_flashpack_from_state_dict_file, str(tmp_path / "model.pt")),
    ):
        destination = str(tmp_path / "out.flashpack")
        assert convert(source, destination, *options) == destination  # type: ignore[operator]
        assert_same(flashpack.load_file(destination), expected)
