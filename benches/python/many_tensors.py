"""Loading a model of many small tensors from the page cache: what a tensor costs, not a byte.

Compares FlashPack with safetensors and torch.load on the same tensors, in turn, in one process; checks
every tensor before it times. Prints a table; `--csv FILE` appends rows with machine, versions and date.
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

import flashpack
import safetensors
import safetensors.torch
import torch

Loader = Callable[[], dict[str, torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=5000)
    parser.add_argument("--elements", type=int, default=64, help="of float32, in each tensor")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    model = {f"layers.{i}.weight": torch.randn(arguments.elements) for i in range(arguments.tensors)}
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(write(model, Path(folder)), model, arguments.rounds)
    print(f"{arguments.tensors} tensors of {arguments.elements} float32, median of {arguments.rounds} rounds")
    for name, times in seconds.items():
        print(f"  {name:20} {statistics.median(times) * 1e3:9.2f} ms  (fastest {min(times) * 1e3:.2f})")
    if arguments.csv:
        append(arguments, seconds)


def write(model: dict[str, torch.Tensor], folder: Path) -> dict[str, Loader]:
    """Write the model in each format; the loaders of the files."""
    packed, safe, pickled = folder / "m.flashpack", folder / "m.safetensors", folder / "m.pt"
    flashpack.save_file(model, packed)
    safetensors.torch.save_file(model, safe)
    torch.save(model, pickled)
    return {
        "flashpack, lazy": lambda: flashpack.load_file(packed),
        "flashpack, eager": lambda: flashpack.load_file(packed, eager=True),
        "safetensors": lambda: safetensors.torch.load_file(safe),
        "torch.load": lambda: torch.load(pickled),
    }


def measure(
    loaders: dict[str, Loader], model: dict[str, torch.Tensor], rounds: int
) -> dict[str, list[float]]:
    for name, load in loaders.items():
        loaded = load()
        if loaded.keys() != model.keys() or not all(torch.equal(loaded[key], model[key]) for key in model):
            raise SystemExit(f"{name} does not give the tensors that were written")
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds):
        for name, load in loaders.items():
            started = time.perf_counter()
            loaded = load()
            seconds[name].append(time.perf_counter() - started)
            del loaded
    return seconds


def append(arguments: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    run = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
        "flashpack": flashpack.__version__,
        "tensors": arguments.tensors,
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
