"""What the ranks of these tests do."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
import torch.distributed as dist
from faultio import Faults
from flashpack._core import ops as _ops
from flashpack._ranks import load as _distributed
from flashpack._ranks.group import Ranks
from flashpack.deserialization import iterate_from_flash_tensor
from helpers import DTYPES, MIB, assert_same, bytes_read, dtype_id, noise
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

MODES: list[tuple[bool, str | None]] = [(False, None), (True, "contiguous"), (True, "windows")]


def tensors() -> dict[str, Tensor]:
    """Of every dtype, empty and scalar ones too, two of them tied, some larger than a window."""
    made = {}
    for seed, dtype in enumerate(DTYPES):
        for shape in ((5, 7), (), (0, 3)):
            made[f"{dtype_id(dtype)}.{'x'.join(map(str, shape)) or 'scalar'}"] = noise(dtype, shape, seed)
    made["large"] = noise(torch.float32, (5, MIB // 2), 98)
    made["half"] = noise(torch.bfloat16, (3, MIB), 99)
    made["tied"] = made["large"]
    return made


class Model(nn.Module):
    """Two layers and a buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(600, 900)
        self.second = nn.Linear(900, 70).bfloat16()
        self.register_buffer("steps", torch.arange(5) + seed)


def read_in_every_mode(path: str) -> list[int]:
    """Bytes that this rank read in each mode; the tensors are compared."""
    asked = []
    for sharded, strategy in MODES:
        before = bytes_read()
        storage, footer = flashpack.read_flashpack_file_distributed(
            path, "cpu", sharded=sharded, shard_strategy=strategy
        )
        asked.append(bytes_read() - before)
        got = dict(iterate_from_flash_tensor(storage, footer))
        assert_same(got, tensors())
        assert got["tied"].data_ptr() == got["large"].data_ptr()
    return asked


def read_from_another_rank(path: str) -> None:
    """The last rank reads, of a safetensors file that the others lack."""
    last = dist.get_world_size() - 1
    own = path if dist.get_rank() == last else f"{path}.gone"
    storage, footer = flashpack.read_flashpack_file_distributed(own, "cpu", src=last)
    assert_same(dict(iterate_from_flash_tensor(storage, footer)), flashpack.load_file(path))


def assign_in_every_mode(path: str, meta: bool) -> None:
    for sharded, strategy in MODES:
        with torch.device("meta" if meta else "cpu"):
            model = Model(seed=dist.get_rank() + 1)
        flashpack.assign_from_file(
            model,
            path,
            device="cpu",
            use_distributed_loading=True,
            distributed_sharded=sharded,
            distributed_shard_strategy=strategy,
            ignore_names=["steps"],
        )
        loaded = {name: value for name, value in model.state_dict().items() if name != "steps"}
        expected = flashpack.load_file(path, names=list(loaded))
        assert_same(loaded, expected)


def assign_only(path: str) -> list[str]:
    """One layer alone; returns what is said of a pattern that fits nothing."""
    told = []
    for sharded, strategy in MODES:
        model = Model(seed=dist.get_rank() + 1)
        before = model.second.weight.detach().clone()
        options: dict[str, Any] = {
            "use_distributed_loading": True,
            "distributed_sharded": sharded,
            "distributed_shard_strategy": strategy,
        }
        flashpack.assign_from_file(model, path, include=["first"], **options)
        assert_same(model.first.state_dict(), Model().first.state_dict())
        assert torch.equal(model.second.weight, before)
        with pytest.raises(ValueError, match="include") as caught:
            flashpack.assign_from_file(model, path, include=["third"], **options)
        told.append(str(caught.value))
    return told


class Built(nn.Module, flashpack.FlashPackMixin):
    """Cannot be built without an argument."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 3)


def build(path: str) -> int:
    """A model with the arguments that the file keeps, which only the first rank has."""
    own = path if dist.get_rank() == 0 else f"{path}.gone"
    model = Built.from_flashpack(own, use_distributed_loading=True)
    assert_same(model.state_dict(), flashpack.load_file(path))
    return model.layer.in_features


# Errors outlive their loads, as those that a notebook shows do; no other rank is to wait for that.
KEPT: list[Exception] = []


def fails(path: str, how: str, sharded: bool) -> dict[str, Any]:
    """The error that this rank got, and after how many seconds.

    It happens on the last rank, or where one reads everything on the first: a breakdown in mid-load, or the
    path there is another, which ends with `how`.
    """
    rank = dist.get_rank()
    culprit = rank == (dist.get_world_size() - 1 if sharded else 0)
    pids: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pids, os.getpid() if culprit else None)
    if culprit and how in BREAKDOWNS:
        break_down(path, how)
    elif culprit:
        path += f".{how}"
    began = time.monotonic()
    try:
        flashpack.read_flashpack_file_distributed(path, "cpu", sharded=sharded)
    except Exception as error:  # noqa: BLE001 (whatever it is, the test looks at it)
        KEPT.append(error)
        if how == "stopped":
            os.kill(next(filter(None, pids)), signal.SIGKILL)
        return {"type": type(error).__name__, "text": str(error), "seconds": time.monotonic() - began}
    return {"type": "none"}


def gives_up(path: str) -> dict[str, Any]:
    """The error of each rank, and after how many seconds, when the first gives up while it waits for data."""
    began = time.monotonic()
    try:
        with Ranks(path) as ranks:
            if ranks.rank == 0:
                ranks.broadcast(torch.zeros(1 << 20, dtype=torch.uint8), 1)  # which that rank never sends
                raise ValueError("gives up")
            ranks.agree(lambda: None)
    except (RuntimeError, ValueError) as error:
        KEPT.append(error)
        seconds = time.monotonic() - began
        dist.barrier()  # as an end of a process closes its connections
        return {"type": type(error).__name__, "text": str(error), "seconds": seconds}
    return {"type": "none"}


def load_while_replaced(path: str, sharded: bool) -> None:
    """Load what was there when the load began, although another file takes its place on one rank's turn."""
    if dist.get_rank() == 0:
        break_down(path, "replaced")
    storage, footer = flashpack.read_flashpack_file_distributed(path, "cpu", sharded=sharded)
    assert_same(dict(iterate_from_flash_tensor(storage, footer)), tensors())
    assert dist.get_rank() or not Path(f"{path}.new").exists()


# What happens to a rank when it is to read its second window.
BREAKDOWNS: dict[str, Callable[[str], object]] = {
    "io": lambda path: Faults("read:0:e5", Path(path)).__enter__(),
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda _: None,
    "replaced": lambda path: Path(f"{path}.new").replace(path),
    "stopped": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
}


def break_down(path: str, how: str) -> None:
    """Let `how` happen on this rank, or its memory end before it allocates any."""
    read_payload, allocate, calls = _ops.fill_payload, _distributed._allocate, []

    def failing(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            BREAKDOWNS[how](path)
        read_payload(*args, **options)

    def allocating(*args: Any) -> Tensor:
        if how == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (memory_in_use() + 4 * MIB, resource.RLIM_INFINITY))
        return allocate(*args)

    _ops.fill_payload, _distributed._allocate = failing, allocating


def memory_in_use() -> int:
    """Bytes of the address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def stands_still(path: str) -> dict[str, Any]:
    """`fails` in a group whose user does not want to wait for long."""
    start_again(path, timeout=timedelta(seconds=12))
    return fails(path, "stopped", sharded=True)


def start_again(path: str, **options: Any) -> None:
    """Another process group in place of that of the test."""
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{path}.group", rank=rank, world_size=size, **options)


def disagrees(path: str, how: str) -> list[str]:
    """The error of a load to which the last rank came with other options or another environment."""
    odd = dist.get_rank() == dist.get_world_size() - 1
    options: dict[str, Any] = {"device": "cpu"}
    if how == "rank":
        options["rank"] = 99 if odd else None
    elif how == "local_rank":
        options["device"] = "cuda"
        os.environ["LOCAL_RANK"] = "first" if odd else "0"
    elif how == "names":
        options["ignore_names"] = ["large"] if odd else []
    elif how == "dtypes":
        options["dtype"] = "float16" if odd else "file"
    model = nn.ParameterDict({"large": torch.empty_like(tensors()["large"])})
    with pytest.raises(ValueError) as caught:
        flashpack.assign_from_file(model, path, strict_params=False, use_distributed_loading=True, **options)
    return [str(caught.value)]


def fails_by_model(path: str) -> list[str]:
    """The error of a load that the model of the last rank does not fit, and what is left of the models."""
    last = dist.get_rank() == dist.get_world_size() - 1
    model = Model(seed=1)
    if last:
        model.second = nn.Linear(900, 71).bfloat16()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        flashpack.assign_from_file(model, path, device="cpu", use_distributed_loading=True)
    except ValueError as error:
        assert_same(model.state_dict(), before)
        return [type(error).__name__, str(error)]
    return []


def assign_shards(folder: str) -> None:
    """A folder of shards, by all ranks in every mode."""
    for sharded, strategy in MODES:
        model = Model(seed=dist.get_rank() + 1)
        flashpack.assign_from_file(
            model,
            folder,
            device="cpu",
            use_distributed_loading=True,
            distributed_sharded=sharded,
            distributed_shard_strategy=strategy,
        )
        assert_same(model.state_dict(), Model().state_dict())


def misses_the_folder(folder: str) -> list[str]:
    """The error of a load whose folder is missing on the last rank."""
    last = dist.get_rank() == dist.get_world_size() - 1
    with pytest.raises(FileNotFoundError) as caught:
        flashpack.assign_from_file(
            Model(), f"{folder}/empty" if last else folder, device="cpu", use_distributed_loading=True
        )
    return [str(caught.value)]


def starts_by_itself(path: str) -> int:
    """A load without a process group makes one, as torchrun's variables say."""
    dist.destroy_process_group()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=Path(path).with_name("port").read_text())
    model = Model(seed=5)
    flashpack.assign_from_file(model, path, device="cpu", use_distributed_loading=True)
    assert_same(model.state_dict(), flashpack.load_file(path))
    return dist.get_world_size()


def read_damaged(files: str | list[str]) -> list[str]:
    """What each mode of loading says of damaged files."""
    said = []
    for sharded, strategy in MODES:
        with pytest.raises(flashpack.ChecksumError) as caught:
            flashpack.read_flashpack_file_distributed(files, "cpu", sharded=sharded, shard_strategy=strategy)
        said.append(str(caught.value))
    return said


def order_of_events(path: str, sharded: bool) -> list[str]:
    """What this rank did in which order: of each step's windows, "send" and "sent"; of its own, "read"."""
    events: list[str] = []
    read_payload, broadcast, wait = _ops.fill_payload, Ranks.broadcast, Ranks.wait

    def reading(*args: Any, **options: Any) -> None:
        events.append("read")
        read_payload(*args, **options)

    def sending(self: Ranks, *args: Any) -> Any:
        events.append("send")
        return broadcast(self, *args)

    def waiting(self: Ranks, work: Any) -> None:
        wait(self, work)
        events.append("sent")

    _ops.fill_payload, Ranks.broadcast, Ranks.wait = reading, sending, waiting
    flashpack.read_flashpack_file_distributed(path, "cpu", sharded=sharded)
    return events


def values_by_url(url: str, sharded: bool, strategy: str | None) -> list[float]:
    """The values that the tensors have, of a model at a URL."""
    storage, _ = flashpack.read_flashpack_file_distributed(
        url, "cpu", sharded=sharded, shard_strategy=strategy
    )
    return sorted(
        {value for block in storage.blocks for value in block.view(torch.float32).unique().tolist()}
    )


def parts_by_url(url: str) -> list[float]:
    """The same, of this rank's part of a tensor."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    part = flashpack.load_sharded({"l": "colwise"}, url, mesh, local=True)["l.weight"]
    return sorted(part.unique().tolist())


def read_by_url(url: str, sharded: bool, strategy: str | None) -> None:
    """Read in one mode; the tensors are compared."""
    storage, footer = flashpack.read_flashpack_file_distributed(
        url, "cpu", sharded=sharded, shard_strategy=strategy
    )
    assert_same(dict(iterate_from_flash_tensor(storage, footer)), tensors())
