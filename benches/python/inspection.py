"""What the commands that look into weights take, start of the program included: `ls` and `diff`.

`ls` lists a file of many tensors: into a pipe, to a pager that shows the first screen, and to one that hands
all to the terminal; beside it, safetensors gives Python the names of as many. `diff` compares two large files
of bfloat16 that differ everywhere, and two that are equal; beside it, two threads read both files, into fresh
memory as a load does, and again and again into memory that stays in the processor's cache. Checks what the
commands print before it times them. All run in turn; prints medians, fastest and slowest.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import flashpack
import limits
import safetensors.torch
import torch
from measure import make_hot, ready_memory

_FIRST_SCREEN, _ALL = "head -n 50", "cat"  # pagers
_NAMES = "import safetensors, sys; len(safetensors.safe_open(sys.argv[1], 'numpy').keys())"
FRESH = next(limit for limit in limits.HOT if limit.name == limits.FRESH)

Contenders = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=100_000, help="of the file that is listed")
    parser.add_argument("--mb", type=int, default=1000, help="of each file that is compared")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = arguments.mb * 10**6
        for title, contenders, memory in (
            (f"ls of {arguments.tensors} tensors", listings(Path(folder), arguments.tensors), 0),
            (f"diff of two files of {arguments.mb} MB", comparisons(Path(folder), size), 2 * size),
        ):
            print(f"{title}; {arguments.rounds} rounds")
            for name, times in measure(contenders, arguments.rounds, memory).items():
                median, fastest, slowest = statistics.median(times), min(times), max(times)
                print(f"  {name:36} median {median:.3f} s ({fastest:.3f}-{slowest:.3f})")


def listings(folder: Path, count: int) -> Contenders:
    """`ls` of a file of `count` tensors."""
    model = {f"blocks.{i // 100}.layers.{i % 100}.weight": torch.ones(4) for i in range(count)}
    packed, safe = folder / "many.flashpack", folder / "many.safetensors"
    flashpack.save_file(model, packed)
    safetensors.torch.save_file(model, safe)
    for output in (command("ls", packed), paged(packed, _ALL)):
        if sum(line.startswith("blocks.") for line in output.splitlines()) != count:
            raise SystemExit(f"ls does not list the {count} tensors:\n{output[:2000]}")
    return {
        "flashpack ls, piped": lambda: command("ls", packed),
        "flashpack ls, first screen": lambda: paged(packed, _FIRST_SCREEN),
        "flashpack ls, all to the terminal": lambda: paged(packed, _ALL),
        "(start of flashpack)": lambda: command("--version"),
        "safetensors, names": lambda: run([sys.executable, "-c", _NAMES, str(safe)]),
    }


def comparisons(folder: Path, size: int) -> Contenders:
    """`diff` of two files of `size` bytes that differ in all values, and of one with its copy."""
    tensors, elements = 20, size // 2 // 20
    paths = {name: folder / f"{name}.flashpack" for name in ("one", "same", "other")}
    for name, factor in (("one", 1), ("same", 1), ("other", 2)):
        generator = torch.Generator().manual_seed(7)
        model = {f"{i}": torch.randn(elements, generator=generator) + 8 for i in range(tensors)}
        flashpack.save_file({key: (factor * value).bfloat16() for key, value in model.items()}, paths[name])
    differences = json.loads(command("diff", paths["one"], paths["other"], "--json", status=1))
    values = [tensor["values"] for tensor in differences["different"]]
    if [value["different"] for value in values] != [elements] * tensors:
        raise SystemExit(f"diff does not find that all values of {tensors} tensors differ: {values}")
    command("diff", paths["one"], paths["same"])
    for path in paths.values():
        make_hot(path)
    return {
        "flashpack diff, all values differ": lambda: command("diff", paths["one"], paths["other"], status=1),
        "flashpack diff, equal": lambda: command("diff", paths["one"], paths["same"]),
        "(both read into fresh memory)": lambda: [FRESH.start(paths[name])() for name in ("one", "other")],
        "(both read into the cache)": lambda: read_both(paths["one"], paths["other"]),
    }


def command(*arguments: str | Path, status: int = 0) -> str:
    """What the command prints into a pipe."""
    return run([sys.executable, "-m", "flashpack", *map(str, arguments)], status)


def run(arguments: list[str], status: int = 0) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != status:
        raise SystemExit(f"{arguments} ended with {done.returncode}, not {status}:\n{done.stderr}")
    return done.stdout


def paged(path: Path, pager: str) -> str:
    """What `ls` shows on a terminal, by way of `pager`."""
    terminal, end = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=lambda: shown.extend(iter(lambda: read(terminal), b"")))
    reader.start()
    words = [sys.executable, "-m", "flashpack", "ls", str(path)]
    environment = os.environ | {"PAGER": pager, "TERM": "xterm"}
    try:
        subprocess.run(words, stdin=end, stdout=end, stderr=end, env=environment, check=True)
    finally:
        os.close(end)
        reader.join()
        os.close(terminal)
    return b"".join(shown).decode()


def read(terminal: int) -> bytes:
    """Some of what was written to the terminal's other end; nothing once that is closed."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux says EIO there
        return b""


def read_both(one: Path, other: Path) -> None:
    """Read both files in chunks, each over the one before."""
    chunk, size = limits.CHUNK, one.stat().st_size
    files = [os.open(path, os.O_RDONLY) for path in (one, other)]
    memory = threading.local()

    def work(offset: int) -> None:
        if not hasattr(memory, "buffer"):
            memory.buffer = limits.huge_memory(chunk)
        for file in files:
            os.preadv(file, [memory.buffer], offset)

    try:
        limits.in_threads(work, size, threads=2)
    finally:
        for file in files:
            os.close(file)


def measure(contenders: Contenders, rounds: int, memory: int) -> dict[str, list[float]]:
    """Seconds of every round; before each run, `memory` bytes are made ready."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            if memory:
                ready_memory(memory)
            started = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
