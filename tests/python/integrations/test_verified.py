"""What docs/guides/loading.md says is verified, of each kind of load, on a file with a damaged byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import flashpack.numpy
import pytest
import torch
from flashpack.integrations.accelerate import disk_offload, load_checkpoint_in_model
from helpers import MIB, flip_byte
from torch import nn

ELEMENTS = MIB  # of four bytes: four chunks with a digest
DAMAGED = 1000  # the byte, in the first chunk
PART = (0, 0, 500)  # 2000 bytes, which hold it
CHUNKS = (0, 0, ELEMENTS // 2)


def model() -> nn.Module:
    made = nn.Module()
    made.weight = nn.Parameter(torch.zeros(ELEMENTS))
    return made


def into(path: Path, **options: Any) -> None:
    flashpack.assign_from_file(model(), path, **options)


def slice_of(path: Path, stop: int) -> None:
    with flashpack.open(path) as file:
        file.get_slice("weight")[:stop]


# By the words of the page, whether the damage is noticed.
LOADS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "mapped": (flashpack.load_file, False),
    "mapped, verify=True": (lambda path: flashpack.load_file(path, verify=True), True),
    "eager": (lambda path: flashpack.load_file(path, eager=True), True),
    "eager, verify=False": (lambda path: flashpack.load_file(path, eager=True, verify=False), False),
    "eager, include": (lambda path: flashpack.load_file(path, eager=True, include=["weight"]), True),
    "eager, part": (lambda path: flashpack.load_file(path, eager=True, slices={"weight": PART}), False),
    "eager, chunks": (lambda path: flashpack.load_file(path, eager=True, slices={"weight": CHUNKS}), True),
    "part, verify=True": (lambda path: flashpack.load_file(path, slices={"weight": PART}, verify=True), True),
    "open, get_tensor": (lambda path: flashpack.open(path).get_tensor("weight"), False),
    "open, verify=True": (lambda path: flashpack.open(path, verify=True), True),
    "get_slice, part": (lambda path: slice_of(path, 500), False),
    "get_slice, chunks": (lambda path: slice_of(path, ELEMENTS // 2), True),
    "into a model": (into, False),
    "into a model, eager": (lambda path: into(path, eager=True), True),
    "in place": (lambda path: into(path, in_place=True), True),
    "numpy": (flashpack.numpy.load_file, True),
    "offloaded": (lambda path: disk_offload(model(), path, "cpu"), False),
    "offloaded, verify=True": (lambda path: disk_offload(model(), path, "cpu", verify=True), True),
    "by a map": (lambda path: load_checkpoint_in_model(model(), path, {"": "cpu"}), False),
    "by a map, verify=True": (
        lambda path: load_checkpoint_in_model(model(), path, {"": "cpu"}, verify=True),
        True,
    ),
    "reverted": (
        lambda path: flashpack.commands.revert_from_flashpack(path, f"{path}.safetensors"),
        True,
    ),
}


@pytest.mark.parametrize("kind", LOADS)
def test_what_is_verified(kind: str, path: Path) -> None:
    flashpack.save_file({"weight": torch.ones(ELEMENTS)}, path)
    flip_byte(path, DAMAGED)
    load, notices = LOADS[kind]
    if notices:
        with pytest.raises(flashpack.ChecksumError, match="chunk 0 is damaged"):
            load(path)
    else:
        load(path)
