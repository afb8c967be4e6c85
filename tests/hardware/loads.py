"""A model's file to the GPU by each library: a load in a fresh process, timed to its last byte."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor

from .child import CannotRunError
from .state import layers, require_equal, write_safetensors

State = dict[str, Tensor]
Load = Callable[[Path, str], State]


@dataclass(frozen=True)
class Contender:
    """A way to load. `version` of the package: None is the one under test, "" the last that there is."""

    name: str
    package: str
    version: str | None
    suffix: str
    start: Callable[[], Load]


def ours(*, verify: bool) -> Load:
    from flashpack import load_file

    return lambda path, device: load_file(path, device, verify=verify)


def upstream() -> Load:
    from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file

    def load(path: Path, device: str) -> State:
        storage, footer = read_flashpack_file(str(path), device=device)
        return dict(iterate_from_flash_tensor(storage, footer))

    return load


def safetensors() -> Load:
    from safetensors.torch import load_file

    return lambda path, device: load_file(path, device=device)


def fastsafetensors() -> Load:
    from fastsafetensors import fastsafe_open

    def load(path: Path, device: str) -> State:
        with fastsafe_open(str(path), nogds=True, device=device) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)

    return load


def instanttensor() -> Load:
    from instanttensor import safe_open

    def load(path: Path, device: str) -> State:
        with safe_open([str(path)], framework="pt", device=torch.device(device).index or 0) as file:
            return dict(file.tensors())

    return load


_PACK, _SAFE = ".flashpack", ".safetensors"
CONTENDERS = [
    Contender("flashpack, verified", "flashpack", None, _PACK, functools.partial(ours, verify=True)),
    Contender("flashpack", "flashpack", None, _PACK, functools.partial(ours, verify=False)),
    Contender("flashpack, of .safetensors", "flashpack", None, _SAFE, functools.partial(ours, verify=False)),
    Contender("flashpack 0.4.5", "flashpack", "0.4.5", _PACK, upstream),
    Contender("safetensors 0.8.0", "safetensors", "0.8.0", _SAFE, safetensors),
    Contender("safetensors 0.9.0rc1", "safetensors", "0.9.0rc1", _SAFE, safetensors),
    Contender("InstantTensor", "instanttensor", "", _SAFE, instanttensor),
    Contender("fastsafetensors, nogds", "fastsafetensors", "", _SAFE, fastsafetensors),
]


def write(folder: str, size: int) -> dict[str, str]:
    """The same tensors in both formats."""
    import flashpack

    tensors = dict(layers(size))
    pack, safe = Path(folder, f"model{_PACK}"), Path(folder, f"model{_SAFE}")
    flashpack.save_file(tensors, pack)
    write_safetensors(safe, tensors)
    for path in (pack, safe):
        measure.make_cold(path)  # a write leaves other pages than a read
    return {_PACK: str(pack), _SAFE: str(safe)}


def load(name: str, path: str, device: str, state: str, size: int, check: bool) -> dict[str, Any]:
    """A load by the contender of this name, the file `hot` or `cold`; `check` compares each byte after it."""
    contender = next(contender for contender in CONTENDERS if contender.name == name)
    try:
        run = contender.start()
    except ImportError as error:
        raise CannotRunError(f"{contender.package} cannot be imported: {error}") from error
    torch.zeros(1, device=device)
    cached = measure.prepare(Path(path), state)
    torch.cuda.synchronize(device)
    cpu, wall = time.process_time(), time.perf_counter()
    tensors = run(Path(path), device)
    torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if check:
        compare(tensors, size, device)
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "cached": cached,
        "bytes": Path(path).stat().st_size,
        "checked": check,
    }


def compare(tensors: State, size: int, device: str) -> None:
    expected = 0
    for name, want in layers(size):
        assert tensors[name].device == torch.device(device), f"{name} is on {tensors[name].device}"
        require_equal(name, tensors[name], want)
        expected += 1
    assert expected == len(tensors), f"{len(tensors)} tensors, not {expected}"
