"""Every way to load to a device opens the file once, as those to the CPU in test_opens.

The emulator computes nothing, so no load here casts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fakecuda
import flashpack
import pytest
from opens import Opens
from torch import nn

pytestmark = pytest.mark.usefixtures("emulator")


def model(layers: int = 16) -> nn.Module:
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(layers)))


def slices(path: Path) -> None:
    with flashpack.open(path, device="cuda") as file:
        part = file.get_slice("0.weight")
        assert all(part[row].is_cuda for row in range(20))


ROADS: dict[str, Callable[[Path], object]] = {
    "load_file": lambda path: flashpack.load_file(path, "cuda"),
    "assign, to the device": lambda path: flashpack.assign_from_file(model(), path, "cuda"),
    "assign, on the device": lambda path: flashpack.assign_from_file(model().cuda(), path),
    "assign, in place": lambda path: flashpack.assign_from_file(model().cuda(), path, in_place=True),
    "assign, a name more": lambda path: flashpack.assign_from_file(model(17), path, "cuda", strict=False),
    "slices": slices,
}


def loads(folder: str) -> None:
    path = Path(folder, "model.flashpack")
    flashpack.pack_to_file(model(), path)
    for name, load in ROADS.items():
        with Opens(path) as opens:
            load(path)
        assert opens.count == 1, f"{name}: {opens.count}"


def test_the_file_is_opened_once(tmp_path: Path) -> None:
    fakecuda.call(loads, str(tmp_path), mode="plain").check()
