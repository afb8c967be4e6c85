"""What the ranks of these tests do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
import torch.distributed as dist
from flashpack import _ops
from flashpack.deserialization import iterate_from_flash_tensor
from helpers import DTYPES, MIB, assert_same, bytes_read, dtype_id, noise
from torch import Tensor, nn

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


def fails(path: str, how: str, sharded: bool) -> dict[str, Any]:
    """The error that this rank got, and after how many seconds."""
    rank = dist.get_rank()
    culprit = dist.get_world_size() - 1 if sharded else 0
    if how == "missing" and rank == culprit:
        path += ".gone"
    if how == "other" and rank == culprit:
        path += ".other"
    read_payload, calls = _ops.read_payload, []

    def failing(*args: Any, **options: Any) -> None:
        calls.append(args)
        if rank == culprit and len(calls) == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "io":
                raise OSError(5, "Input/output error", path)
            if how == "memory":
                raise MemoryError("no memory")
        read_payload(*args, **options)

    _ops.read_payload = failing
    began = time.monotonic()
    try:
        flashpack.read_flashpack_file_distributed(path, "cpu", sharded=sharded)
    except Exception as error:  # noqa: BLE001 (whatever it is, the test looks at it)
        return {"type": type(error).__name__, "text": str(error), "seconds": time.monotonic() - began}
    return {"type": "none"}


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
