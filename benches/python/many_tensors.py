"""Loading a model of many small tensors from the page cache: what a tensor costs, not a byte.

Compares FlashPack with safetensors and torch.load on the same tensors, in turn, in one process: as state
dicts, and into modules that are in memory already, each contender's own. Checks every tensor before it times.
As many calls of torch.empty beside them tell how fast the machine is at the moment, and for a module also
what it takes to put as many into the places of its own, without any file. Prints tables; `--csv FILE`
appends rows with machine, versions and date.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flashpack
import safetensors
import safetensors.torch
import torch
from torch import nn

Tensors = dict[str, torch.Tensor]


class Contender(NamedTuple):
    """What is timed, and how the tensors that it loads are had from its result; None: it loads none."""

    run: Callable[[], Any]
    loaded: Callable[[Any], Tensors] | None


class Files(NamedTuple):
    """The model in each format."""

    packed: Path
    safe: Path
    pickled: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=5000, help="of the state dict")
    parser.add_argument("--parameters", type=int, default=10000, help="of the module")
    parser.add_argument("--elements", type=int, default=64, help="of float32, in each tensor")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    for what, count, contenders in (
        ("a state dict", arguments.tensors, loads),
        ("a module", arguments.parameters, assignments),
    ):
        model = random_model(count, arguments.elements)
        with tempfile.TemporaryDirectory() as folder:
            files = write(model, Path(folder))
            seconds = measure(contenders(files, model), model, arguments.rounds)
        print(f"{what} of {count} tensors, {arguments.elements} float32 each; {arguments.rounds} rounds")
        for name, times in seconds.items():
            median = statistics.median(times)
            print(f"  {name:33} median {median * 1e3:8.2f} ms, fastest {min(times) * 1e3:8.2f} ms")
        if arguments.csv:
            append(arguments, count, seconds)


def random_model(count: int, elements: int) -> Tensors:
    """Two tensors in each layer, fifty layers in each block."""
    names = (f"blocks.{i // 100}.layers.{i // 2 % 50}.{('weight', 'bias')[i % 2]}" for i in range(count))
    return {name: torch.randn(elements) for name in names}


def write(model: Tensors, folder: Path) -> Files:
    files = Files(folder / "m.flashpack", folder / "m.safetensors", folder / "m.pt")
    flashpack.save_file(model, files.packed)
    safetensors.torch.save_file(model, files.safe)
    torch.save(model, files.pickled)
    return files


def loads(files: Files, model: Tensors) -> dict[str, Contender]:
    """Those that give a state dict."""
    ways: dict[str, Callable[[], Tensors]] = {
        "flashpack, lazy": lambda: flashpack.load_file(files.packed),
        "flashpack, eager": lambda: flashpack.load_file(files.packed, eager=True),
        "safetensors": lambda: safetensors.torch.load_file(files.safe),
        "torch.load": lambda: torch.load(files.pickled),
    }
    bare = {"(as many torch.empty)": Contender(lambda: new_tensors(model), None)}
    return {name: Contender(way, lambda loaded: loaded) for name, way in ways.items()} | bare


def assignments(files: Files, model: Tensors) -> dict[str, Contender]:
    """Those that load into a module."""
    ways: dict[str, Callable[[nn.Module], Any]] = {
        "assign_from_file": lambda module: flashpack.assign_from_file(module, files.packed),
        "assign_from_file, in_place": lambda module: flashpack.assign_from_file(
            module, files.packed, in_place=True
        ),
        "safetensors, load_state_dict": lambda module: module.load_state_dict(
            safetensors.torch.load_file(files.safe)
        ),
        "torch.load, load_state_dict": lambda module: module.load_state_dict(torch.load(files.pickled)),
    }
    parameters = [nn.Parameter(torch.zeros_like(tensor)) for tensor in model.values()]

    def put_new() -> None:
        for parameter, tensor in zip(parameters, new_tensors(model), strict=True):
            parameter.data = tensor

    bare = {"(as many torch.empty)": lambda: new_tensors(model), "(the same, put into place)": put_new}
    return {name: into_module(way, model) for name, way in ways.items()} | {
        name: Contender(way, None) for name, way in bare.items()
    }


def new_tensors(model: Tensors) -> list[torch.Tensor]:
    """As many as the model's, of as many elements."""
    elements = next(iter(model.values())).numel()
    return [torch.empty(elements) for _ in model]


def into_module(load: Callable[[nn.Module], Any], model: Tensors) -> Contender:
    """`load` of a module with parameters of the model's names and shapes, but other values."""
    module = nn.Module()
    for name, tensor in model.items():
        owner = module
        *path, attribute = name.split(".")
        for step in path:
            if not hasattr(owner, step):
                owner.add_module(step, nn.Module())
            owner = owner.get_submodule(step)
        owner.register_parameter(attribute, nn.Parameter(torch.zeros_like(tensor)))
    return Contender(lambda: load(module), lambda _: dict(module.named_parameters()))


def measure(contenders: dict[str, Contender], model: Tensors, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, each of which runs a contender twice: what it left in the caches counts."""
    for name, contender in contenders.items():
        if contender.loaded is None:
            continue
        loaded = contender.loaded(contender.run())
        if loaded.keys() != model.keys() or not all(torch.equal(loaded[key], model[key]) for key in model):
            raise SystemExit(f"{name} does not give the tensors that were written")
        del loaded
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            contender.run()
            started = time.perf_counter()
            result = contender.run()
            seconds[name].append(time.perf_counter() - started)
            del result
    return seconds


def append(arguments: argparse.Namespace, count: int, seconds: dict[str, list[float]]) -> None:
    run = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
        "flashpack": flashpack.__version__,
        "tensors": count,
        "elements": arguments.elements,
        "rounds": arguments.rounds,
    }
    new = not arguments.csv.exists()
    with arguments.csv.open("a", newline="") as file:
        rows = csv.DictWriter(file, [*run, "loader", "median_ms"])
        if new:
            rows.writeheader()
        for name, times in seconds.items():
            rows.writerow(run | {"loader": name, "median_ms": round(statistics.median(times) * 1e3, 3)})


if __name__ == "__main__":
    main()
