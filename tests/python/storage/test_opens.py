"""Every way to load opens the file once, whatever it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import flashpack
import flashpack.numpy
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from flashpack.deserialization import read_flashpack_file
from flashpack.integrations import _serving
from opens import Opens
from torch import nn

FP16 = torch.float16


class Model(nn.Module):
    def __init__(self, *, extra: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(32))
        if extra:
            self.extra = nn.Linear(2, 2)


def on_meta() -> Model:
    with torch.device("meta"):
        return Model()


def slices(path: Path) -> None:
    with flashpack.open(path) as file:
        part = file.get_slice("layers.0.weight")
        for row in range(100):
            assert part[row % 64].shape == (64,)


def serve(path: Path) -> None:
    options = _serving.ServingOptions(mapped=False)
    tensors = dict(_serving.checkpoint_tensors(path, torch.device("cpu"), options))
    assert tensors.keys() == Model().state_dict().keys()


ROADS: dict[str, Callable[[Path], object]] = {
    "load_file": flashpack.load_file,
    "load_file, eager": lambda path: flashpack.load_file(path, eager=True),
    "load_file, cast": lambda path: flashpack.load_file(path, dtype=FP16),
    "load_file, slices": lambda path: flashpack.load_file(path, slices={"layers.0.bias": (0, 1, 3)}),
    "assign": lambda path: flashpack.assign_from_file(Model(), path),
    "assign, eager": lambda path: flashpack.assign_from_file(Model(), path, eager=True),
    "assign, a name more": lambda path: flashpack.assign_from_file(Model(extra=True), path, strict=False),
    "assign, cast": lambda path: flashpack.assign_from_file(Model(), path, dtype=FP16),
    "assign, meta": lambda path: flashpack.assign_from_file(on_meta(), path),
    "assign, in place": lambda path: flashpack.assign_from_file(Model(), path, in_place=True),
    "assign, in place, cast": lambda path: flashpack.assign_from_file(
        Model().half(), path, in_place=True, dtype="model"
    ),
    "assign, with blocks": lambda path: flashpack.assign_from_file(
        Model(), path, keep_flash_ref_on_model=True
    ),
    "assign, told": lambda path: flashpack.assign_from_file(Model(), path, silent=False, eager=True),
    "blocks": read_flashpack_file,
    "100 slices": slices,
    "windows": serve,
    "numpy": flashpack.numpy.load_file,
    "verify": flashpack.verify_file,
    "metadata": flashpack.get_flashpack_file_metadata,
    "revert": lambda path: revert_from_flashpack(path, path.with_suffix(".safetensors")),
}


@pytest.fixture
def packed(path: Path) -> Path:
    flashpack.pack_to_file(Model(), path)
    return path


@pytest.mark.parametrize("road", ROADS)
def test_the_file_is_opened_once(road: str, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_serving, "WINDOW_BYTES", packed.stat().st_size // 8)
    with Opens(packed) as opens:
        ROADS[road](packed)
    assert opens.count == 1


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_conversion_opens_its_source_once(dtype: str | None, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    safetensors.torch.save_file(Model().state_dict(), source)
    with Opens(source) as opens:
        convert_to_flashpack(source, tmp_path / "model.flashpack", dtype)
    assert opens.count == 1


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_the_file_is_opened_once_for_dtensors(packed: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    model = on_meta()
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    with Opens(packed) as opens:
        flashpack.assign_from_file(model, packed)
    assert opens.count == 1


def test_direct_reads_open_it_once_more(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all loads of the open file together."""
    monkeypatch.setenv("FLASHPACK_DIRECT_IO", "1")
    with Opens(packed) as opens:
        slices(packed)
    assert opens.count <= 2
