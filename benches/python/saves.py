"""What is compared of writing: saving a state dict from memory, and converting a .safetensors file.

The clock stops when the bytes are on the disk: whoever does not see to that has fsync called for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import loads
from peers import OURS

State = dict[str, Any]


@dataclass(frozen=True)
class Save:
    name: str
    peer: str
    suffix: str
    start: Callable[[], Callable[[State, Path], None]]
    load: Callable[[], Callable[[Path], State]]  # to check what was written


@dataclass(frozen=True)
class Convert:
    """A program, from the .safetensors file to a file with `suffix`."""

    name: str
    peer: str
    suffix: str
    command: Callable[[Path, Path], list[str]]
    load: Callable[[], Callable[[Path], State]]


def _ours() -> Callable[[State, Path], None]:
    from flashpack import save_file

    return save_file


def _upstream() -> Callable[[State, Path], None]:
    from flashpack import pack_to_file

    return lambda state, path: pack_to_file(state, str(path), target_dtype=None)


def _safetensors() -> Callable[[State, Path], None]:
    from safetensors.torch import save_file

    return save_file


def _torch() -> Callable[[State, Path], None]:
    import torch

    return torch.save


_UPSTREAM_CONVERT = """
import sys
from flashpack import pack_to_file
from safetensors.torch import load_file
pack_to_file(load_file(sys.argv[1]), sys.argv[2], target_dtype=None)
"""


def _cli(source: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "flashpack", "convert", str(source), str(target)]


def _script(source: Path, target: Path) -> list[str]:
    return [sys.executable, "-c", _UPSTREAM_CONVERT, str(source), str(target)]


def _old_file() -> Callable[[Path], State]:
    return loads.upstream(eager=False)


_PACK, _SAFE, _PT = ".flashpack", ".safetensors", ".pt"
_OLD = "flashpack 0.4.5"

SAVE = [
    Save("flashpack", OURS, _PACK, _ours, loads.ours),
    Save("flashpack 0.4.5", _OLD, _PACK, _upstream, _old_file),
    Save("safetensors 0.8.0 + fsync", "safetensors 0.8.0", _SAFE, _safetensors, loads.safetensors),
    Save("safetensors 0.9.0rc1 + fsync", "safetensors 0.9.0rc1", _SAFE, _safetensors, loads.safetensors),
    Save("torch.save + fsync", "torch", _PT, _torch, loads.pickled),
]
CP = "cp + fsync"
CONVERT = [
    Convert("flashpack convert", OURS, _PACK, _cli, loads.ours),
    Convert(
        CP, "safetensors 0.8.0", _SAFE, lambda source, to: ["cp", str(source), str(to)], loads.safetensors
    ),
    Convert("flashpack 0.4.5 convert", _OLD, _PACK, _cli, _old_file),
    Convert("flashpack 0.4.5, load_file and pack_to_file", _OLD, _PACK, _script, _old_file),
]
