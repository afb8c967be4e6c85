"""FlashPack, its older release and safetensors behind one pair of functions, each in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import upstream
from torch import Tensor

State = dict[str, Tensor]
NAMES = ("flashpack", "flashpack-0.4.5", "safetensors")


@dataclass(frozen=True)
class Library:
    """How a state dict is saved, and loaded whole."""

    save: Callable[[State, Path], object]
    load: Callable[[Path], State]
    map: Callable[[Path], State]


def this_library(name: str) -> Library:
    """The library, in a process that `in_processes_of` started for it."""
    if name == "safetensors":
        from safetensors.torch import load_file, save_file

        return Library(save_file, lambda path: {**load_file(path)}, load_file)
    import flashpack

    if name == "flashpack":
        return Library(
            flashpack.save_file, lambda path: flashpack.load_file(path, eager=True), flashpack.load_file
        )
    assert flashpack.__version__ == "0.4.5", flashpack.__file__
    from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file

    def load(path: Path) -> State:
        return dict(iterate_from_flash_tensor(*read_flashpack_file(str(path))))

    return Library(lambda state, path: flashpack.pack_to_file(state, str(path), torch.float32), load, load)


def in_processes_of(name: str, script: str, *args: object) -> str:
    """Run `script` where `this_library(name)` works; what it printed."""
    folders = [str(upstream.install())] if name == "flashpack-0.4.5" else []
    paths = os.pathsep.join([*folders, *(entry for entry in sys.path if entry)])
    done = subprocess.run(
        [sys.executable, script, "--library", name, *map(str, args)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout
