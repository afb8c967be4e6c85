"""The loads that are compared: to tensors (eagerly, or lazily with a touch of every page) and into a module.

Each starts with its imports, which no clock sees, and then gives the call that is measured.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import OURS

State = dict[str, Any]


@dataclass(frozen=True)
class Load:
    name: str
    peer: str
    suffix: str
    start: Callable[[], Callable[..., Any]]  # of a load to tensors: path -> state; else model, path -> None
    copies: int = 1  # of the file's bytes that it takes memory for


def ours(**options: bool) -> Callable[[Path], State]:
    import flashpack

    return functools.partial(flashpack.load_file, **options)


def upstream(*, eager: bool) -> Callable[[Path], State]:
    os.environ["FLASHPACK_CPU_PARALLEL_READ"] = "1" if eager else "0"
    from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file

    return lambda path: dict(iterate_from_flash_tensor(*read_flashpack_file(str(path), device="cpu")))


def safetensors(backend: str = "mmap") -> Callable[[Path], State]:
    from safetensors.torch import load_file

    return lambda path: load_file(path, backend=backend)


def safetensors_bytes() -> Callable[[Path], State]:
    from safetensors.torch import load

    return lambda path: load(path.read_bytes())


def pickled(*, mmap: bool = False) -> Callable[[Path], State]:
    import torch

    return lambda path: torch.load(path, weights_only=True, mmap=mmap)  # type: ignore[no-any-return]


def fastsafetensors() -> Callable[[Path], State]:
    from fastsafetensors import fastsafe_open

    def load(path: Path) -> State:
        with fastsafe_open(str(path), nogds=True, device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)

    return load


def runai() -> Callable[[Path], State]:
    from runai_model_streamer import SafetensorsStreamer

    def load(path: Path) -> State:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(str(path))
            return dict(streamer.get_tensors())

    return load


def assign_to(*, ours: bool, **options: bool) -> Callable[[Any, Path], None]:
    from flashpack import assign_from_file

    return lambda model, path: assign_from_file(model, path if ours else str(path), **options)


def load_state_dict_of(
    load: Callable[[], Callable[[Path], State]], *, assign: bool = False
) -> Callable[..., Any]:
    loaded = load()
    return lambda model, path: model.load_state_dict(loaded(path), assign=assign)


def accelerate() -> Callable[[Any, Path], None]:
    from accelerate import load_checkpoint_in_model

    return lambda model, path: load_checkpoint_in_model(model, str(path))


_part = functools.partial
_PACK, _SAFE, _PT = ".flashpack", ".safetensors", ".pt"
_OLD, _SAFE8, _SAFE9, _ACCELERATE = (
    *("flashpack 0.4.5", "safetensors 0.8.0"),
    *("safetensors 0.9.0rc1", "accelerate 1.15.0"),
)

EAGER = [
    Load("flashpack", OURS, _PACK, _part(ours, eager=True)),
    Load("flashpack, not verified", OURS, _PACK, _part(ours, eager=True, verify=False)),
    Load("flashpack, of .safetensors", OURS, _SAFE, _part(ours, eager=True)),
    Load("flashpack 0.4.5, CPU_PARALLEL_READ", _OLD, _PACK, _part(upstream, eager=True)),
    Load("safetensors 0.8.0, pread", _SAFE8, _SAFE, _part(safetensors, "pread")),
    Load("safetensors 0.8.0, load(bytes)", _SAFE8, _SAFE, safetensors_bytes, copies=2),
    Load("safetensors 0.9.0rc1, pread", _SAFE9, _SAFE, _part(safetensors, "pread")),
    Load("torch.load", "torch", _PT, pickled),
    Load("fastsafetensors 0.5.0, nogds", "fastsafetensors 0.5.0", _SAFE, fastsafetensors),
    Load("runai-model-streamer 0.17.0", "runai-model-streamer 0.17.0", _SAFE, runai),
]
LAZY = [
    Load("flashpack", OURS, _PACK, ours),
    Load("flashpack, eager=False", OURS, _PACK, _part(ours, eager=False)),
    Load("flashpack, of .safetensors", OURS, _SAFE, ours),
    Load("flashpack 0.4.5", _OLD, _PACK, _part(upstream, eager=False)),
    Load("safetensors 0.8.0", _SAFE8, _SAFE, safetensors),
    Load("safetensors 0.9.0rc1", _SAFE9, _SAFE, safetensors),
    Load("torch.load, mmap", "torch", _PT, _part(pickled, mmap=True)),
]
MODULE = [
    Load("flashpack", OURS, _PACK, _part(assign_to, ours=True)),
    Load("flashpack, eager", OURS, _PACK, _part(assign_to, ours=True, eager=True)),
    Load("flashpack, in place", OURS, _PACK, _part(assign_to, ours=True, in_place=True)),
    Load("flashpack, of .safetensors", OURS, _SAFE, _part(assign_to, ours=True)),
    Load("flashpack 0.4.5", _OLD, _PACK, _part(assign_to, ours=False)),
    Load("safetensors 0.8.0", _SAFE8, _SAFE, _part(load_state_dict_of, safetensors)),
    Load(
        "safetensors 0.8.0, assign=True", _SAFE8, _SAFE, _part(load_state_dict_of, safetensors, assign=True)
    ),
    Load("safetensors 0.9.0rc1", _SAFE9, _SAFE, _part(load_state_dict_of, safetensors)),
    Load("torch.load", "torch", _PT, _part(load_state_dict_of, pickled)),
    Load(
        "torch.load, mmap, assign=True",
        "torch",
        _PT,
        _part(load_state_dict_of, _part(pickled, mmap=True), assign=True),
    ),
    Load("accelerate 1.15.0", _ACCELERATE, _SAFE, accelerate),
]
