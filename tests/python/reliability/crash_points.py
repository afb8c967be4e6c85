"""Kills savers at random points and looks at what they leave.

    python tests/python/reliability/crash_points.py [--kills 200] [--mib 32] [--library NAME [--shards]]

A child process replaces a file of one version by the other; SIGKILL comes at a random moment of its time.
What is then at the destination must be the old bytes or the new ones. Afterwards one more save must remove
what the killed ones left. Without --library, all of them in turn: flashpack, flashpack-0.4.5, safetensors.
With --shards the model is four files and an index, which cannot all be replaced at once: it must then be
the old model, or the new one, or be refused as incomplete.
(The kernel survives, so this is not a power cut: what fsync is there for cannot be seen this way.)
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
import flashpack
import torch
from helpers import bits
from libraries import NAMES, Library, State, in_processes_of, this_library

PARTS = 16
REFUSED = "refused"


def version(value: float, mib: int) -> State:
    return {f"layers.{part}": torch.full(((mib << 18) // PARTS,), value + part) for part in range(PARTS)}


def digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes()).hexdigest() if path.exists() else ""


def sharded(library: Library, mib: int) -> tuple[Library, Callable[[Path], str]]:
    """The library that writes four files, and the digest of what they hold."""

    def content(path: Path) -> str:
        try:
            tensors = library.load(path)
        except ValueError:
            return REFUSED
        found = hashlib.blake2b()
        for name, tensor in sorted(tensors.items()):
            found.update(name.encode() + bits(tensor))
        return found.hexdigest()

    def save(state: State, path: Path) -> object:
        return flashpack.save_file(state, path, max_shard_size=mib << 18)

    return replace(library, save=save), content


def kill_one(library: Library, state: State, path: Path, delay: float) -> bool:
    """Whether the saver was killed before it was done."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        os.write(go, b".")
        library.save(state, path)
        os._exit(0)
    os.close(go)
    os.read(ready, 1)
    os.close(ready)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def attack(library: Library, kills: int, mib: int, folder: Path, digest: Callable[[Path], str]) -> str:
    """Until `kills` savers were killed on the way."""
    path = folder / "model.flashpack"
    states = [version(0, mib), version(100, mib)]
    digests, seconds = [], []
    for state in states * 3:
        began = time.monotonic()
        library.save(state, path)
        seconds.append(time.monotonic() - began)
        digests.append(digest(path))
    # Whole files are known by their digests: a saver must always write the same one.
    assert len(set(digests)) == 2, "saving is not reproducible"
    chance = random.Random(2301)
    whole = {entry.name for entry in folder.iterdir()}
    old, outcomes, litter = 1, {"old": 0, "new": 0, REFUSED: 0, "torn": 0}, 0
    while sum(outcomes.values()) < kills:
        new = 1 - old
        # A fork's pages are copied on first touch, so its save takes longer.
        delay = chance.uniform(0, 1.5 * statistics.median(seconds))
        if not kill_one(library, states[new], path, delay):
            old = new
            continue
        found = digest(path)
        outcome = {digests[old]: "old", digests[new]: "new", REFUSED: REFUSED}.get(found, "torn")
        outcomes[outcome] += 1
        left = sum(entry.stat().st_size for entry in folder.iterdir() if entry.name not in whole)
        litter = max(litter, left)
        if outcome == "new":
            old = new
        elif outcome != "old":
            library.save(states[old], path)
    library.save(states[old], path)
    left = sum(entry.name not in whole for entry in folder.iterdir())
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return (
        f"{counts}; at most {litter >> 20} MiB of temporary files between saves, "
        f"{left} files left after the last"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--mib", type=int, default=32)
    parser.add_argument("--library", choices=NAMES)
    parser.add_argument("--shards", action="store_true")
    options = parser.parse_args()
    if options.library is None:
        given = ("--kills", options.kills, "--mib", options.mib)
        for name, *more in (*((name,) for name in NAMES), (NAMES[0], "--shards")):
            print(in_processes_of(name, __file__, *given, *more), end="", flush=True)
        return
    torch.set_num_threads(1)
    library, look = this_library(options.library), digest
    if options.shards:
        library, look = sharded(library, options.mib)
    with tempfile.TemporaryDirectory() as folder:
        told = attack(library, options.kills, options.mib, Path(folder), look)
    name = f"{options.library}{', shards' if options.shards else ''}"
    print(f"{name:<17} {options.kills} kills: {told}", flush=True)


if __name__ == "__main__":
    main()
