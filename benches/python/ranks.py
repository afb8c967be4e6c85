"""Wall times of loads by 1, 2, 4 and 8 gloo ranks on this machine, after a check of every byte.

    python benches/python/ranks.py [--mib 1024] [--rounds 3]

"alone": each rank reads the whole file by itself. The file is in the page cache: sharing it is what is timed.
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

import flashpack
import torch
import torch.distributed as dist
from torch import Tensor

MIB = 1 << 20
SIZES = (1, 2, 4, 8)
MODES = ("alone", "broadcast", "contiguous", "windows")
GROUP_SECONDS = 300


def tensors(mib: int) -> dict[str, Tensor]:
    """`mib` MiB of random bytes in 16 tensors."""
    generator = torch.Generator().manual_seed(2301)
    count = mib * MIB // 16
    return {
        f"t{number}": torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
        for number in range(16)
    }


def load(path: str, mode: str) -> list[Tensor]:
    """The file's blocks on this rank."""
    if mode == "alone":
        return flashpack.deserialization.read_flashpack_file(path, eager=True)[0].blocks
    sharded, strategy = mode != "broadcast", None if mode == "broadcast" else mode
    storage, _ = flashpack.read_flashpack_file_distributed(
        path, "cpu", sharded=sharded, shard_strategy=strategy
    )
    return storage.blocks


def bytes_read() -> int:
    """What this process has asked the system to read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def rank_main(path: str, rounds: int, folder: str) -> None:
    """One rank: check each mode, then time it; rank 0 tells the slowest rank's best time and all bytes."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=GROUP_SECONDS),
    )
    (expected,) = flashpack.deserialization.read_flashpack_file(path, eager=False)[0].blocks
    rows = {}
    for mode in MODES if size > 1 else ("alone",):
        before = bytes_read()
        (block,) = load(path, mode)
        asked = torch.tensor([bytes_read() - before])
        if not torch.equal(block, expected):
            raise SystemExit(f"{mode}: rank {rank} of {size} has other bytes")
        del block
        dist.all_reduce(asked)
        times = []
        for _ in range(rounds):
            dist.barrier()
            began = time.monotonic()
            load(path, mode)
            taken = torch.tensor([time.monotonic() - began])
            dist.all_reduce(taken, op=dist.ReduceOp.MAX)
            times.append(float(taken))
        rows[mode] = {"seconds": min(times), "read": int(asked)}
    if rank == 0:
        print(json.dumps(rows))
    dist.destroy_process_group()


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


def main() -> None:
    if "--rank" in sys.argv:
        path, rounds, folder = sys.argv[2:]
        rank_main(path, int(rounds), folder)
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3, help="timed loads, of which the best counts")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.flashpack")
        flashpack.save_file(tensors(asked.mib), path)
        print(f"{asked.mib} MiB, {os.cpu_count()} processors, best of {asked.rounds}; read by all together")
        print(f"{'ranks':<6}" + "".join(f"{mode:>24}" for mode in MODES))
        for size in SIZES:
            rows = run(size, path, asked.rounds)
            cells = [f"{row['seconds']:.2f} s {row['read'] / MIB:>8.0f} MiB" for row in rows.values()]
            print(f"{size:<6}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
