"""Loads by 1, 2, 4 and 8 gloo ranks on this machine, timed after a check of every byte.

    python benches/python/ranks.py [--mib 1024] [--rounds 3]

    mapped      each rank maps the file, as loads on the CPU do by default, and touches every page
    alone       each rank reads all of it by itself
    bare        gloo alone: memory of rank 0 is broadcast to the others, and no file read
    broadcast, contiguous, windows: use_distributed_loading, and the strategies of distributed_sharded

Best times of the slowest rank, with the file in the page cache and dropped from it; and what all ranks
together asked the system for, and what came from the disk, in a load of the dropped file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import flashpack
import torch
import torch.distributed as dist
from flashpack.deserialization import read_flashpack_file
from measure import make_cold
from torch import Tensor

MIB = 1 << 20
SIZES = (1, 2, 4, 8)
MODES = ("mapped", "alone", "bare", "broadcast", "contiguous", "windows")
GROUP_SECONDS = 300
PAGE_BYTES = 4096


def tensors(mib: int) -> dict[str, Tensor]:
    """`mib` MiB of random bytes in 16 tensors."""
    generator = torch.Generator().manual_seed(2301)
    count = mib * MIB // 16
    return {
        f"t{number}": torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
        for number in range(16)
    }


def load(path: Path, mode: str) -> Tensor:
    """The file's one block on this rank."""
    if mode == "alone":
        return read_flashpack_file(path, eager=True)[0].block(0)
    if mode == "mapped":
        block = read_flashpack_file(path, eager=False)[0].block(0)
        block[::PAGE_BYTES].sum()
        return block
    strategy = None if mode == "broadcast" else mode
    storage, _ = flashpack.read_flashpack_file_distributed(
        path, "cpu", sharded=strategy is not None, shard_strategy=strategy
    )
    return storage.block(0)


class Rank:
    """One rank: checks each mode, then times it."""

    def __init__(self, path: Path, folder: str) -> None:
        torch.set_num_threads(1)
        self.path = path
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=GROUP_SECONDS),
        )
        self.bare = torch.ones(path.stat().st_size, dtype=torch.uint8) if self.rank == 0 else None

    def run(self, rounds: int) -> dict[str, dict[str, float]]:
        """A row for each mode."""
        rows = {}
        for mode in MODES if self.size > 1 else ("mapped", "alone"):
            if mode != "bare":
                self.check(mode)
            hot = min(self.timed(mode, cold=False)[0] for _ in range(rounds))
            cold = [self.timed(mode, cold=True) for _ in range(rounds)]
            rows[mode] = {
                "hot": hot,
                "cold": min(seconds for seconds, _, _ in cold),
                "read": min(asked for _, asked, _ in cold),
                "disk": min(stored for _, _, stored in cold),
            }
        return rows

    def check(self, mode: str) -> None:
        """Every byte."""
        expected = read_flashpack_file(self.path, eager=False)[0].block(0)
        if not torch.equal(load(self.path, mode), expected):
            raise SystemExit(f"{mode}: rank {self.rank} of {self.size} has other bytes")

    def timed(self, mode: str, cold: bool) -> tuple[float, int, int]:
        """Seconds of the slowest rank, and bytes of all: asked for, and from the disk."""
        dist.barrier()
        if self.rank == 0:
            make_cold(self.path) if cold else self.path.read_bytes()
        dist.barrier()
        before = counted()
        began = time.monotonic()
        self.broadcast() if mode == "bare" else load(self.path, mode)
        taken = torch.tensor([time.monotonic() - began])
        read = torch.tensor([after - before for after, before in zip(counted(), before, strict=True)])
        dist.all_reduce(taken, op=dist.ReduceOp.MAX)
        dist.all_reduce(read)
        return float(taken), int(read[0]), int(read[1])

    def broadcast(self) -> None:
        """What the collective takes by itself."""
        memory = self.bare
        if memory is None:
            memory = torch.empty(self.path.stat().st_size, dtype=torch.uint8)
        dist.broadcast(memory, 0)


def counted() -> tuple[int, int]:
    """What this process has asked the system to read so far, and what came from a disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    numbers = dict(line.split(": ") for line in lines)
    return int(numbers["rchar"]), int(numbers["read_bytes"])


def run(size: int, path: Path, rounds: int) -> dict[str, dict[str, float]]:
    """The rows of `size` ranks."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank", str(path), str(rounds), folder],
                env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size)},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
            for rank in range(size)
        ]
        output = processes[0].communicate()[0]
        if any(process.wait() for process in processes):
            sys.exit(f"a rank of {size} failed")
    rows: dict[str, dict[str, float]] = json.loads(output.splitlines()[-1])
    return rows


def row(number: int, rows: dict[str, dict[str, float]], cell: Any) -> str:
    """A row of a table."""
    return " | ".join([f"| {number}", *(cell(rows[mode]) if mode in rows else "" for mode in MODES)]) + " |"


def main() -> None:
    if "--rank" in sys.argv:
        path, rounds, folder = sys.argv[2:]
        rank = Rank(Path(path), folder)
        rows = rank.run(int(rounds))
        if rank.rank == 0:
            print(json.dumps(rows))
        dist.destroy_process_group()
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3, help="timed loads, of which the best counts")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of ranks")
    parser.add_argument("--folder", help="where the file is written for the time; default: that of tempfile")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        path = Path(folder, "model.flashpack")
        flashpack.save_file(tensors(asked.mib), path)
        print(f"{asked.mib} MiB, {os.cpu_count()} processors, best of {asked.rounds}")
        found = {size: run(size, path, asked.rounds) for size in asked.sizes}
    tables = {
        "seconds, hot / cold": lambda each: f"{each['hot']:.2f} / {each['cold']:.2f}",
        "MiB asked for / from the disk, cold": lambda each: (
            f"{each['read'] / MIB:.0f} / {each['disk'] / MIB:.0f}"
        ),
    }
    for title, cell in tables.items():
        print(f"\n{title}\n\n" + " | ".join(["| ranks", *MODES]) + " |\n" + "| --- " * (len(MODES) + 1) + "|")
        for size, rows in found.items():
            print(row(size, rows, cell))


if __name__ == "__main__":
    main()
