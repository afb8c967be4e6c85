"""Readers without end while writers replace what they read.

    python tests/python/reliability/torn_reads.py [--readers 32] [--seconds 20] [--library NAME]

As many processes, and then as many threads of one process, load one file and a folder of files over and
over, while a process replaces each of them with its next version. All elements of a version are its number,
so that a load of two versions, or of half a file, shows. Without --library, all of them in turn: flashpack,
flashpack-0.4.5, safetensors.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
import torch
from libraries import NAMES, Library, State, in_processes_of, this_library

FILES = ("model", "folder/a", "folder/b", "folder/c")
PARTS, PART_ELEMENTS = 8, 1 << 16  # 2 MiB a file


def version(number: int) -> State:
    # Sizes alternate between versions, so that offsets do, too.
    elements = PART_ELEMENTS + number % 2 * 1000
    return {f"layers.{part}": torch.full((elements,), float(number)) for part in range(PARTS)}


def write_until(deadline: float, library: Library, folder: Path) -> str:
    number = 0
    while time.monotonic() < deadline:
        number += 1
        for name in FILES:
            library.save(version(number), folder / name)
    return str(number)


def outcome_of(load: Callable[[Path], State], path: Path) -> str:
    try:
        tensors = load(path)
    except Exception as error:  # noqa: BLE001 (every failure counts)
        return f"failed: {type(error).__name__}"
    arrays = [tensor.numpy() for tensor in tensors.values()]
    number = arrays[0][0]
    whole = len(arrays) == PARTS and all((array == number).all() for array in arrays)
    return "whole" if whole else "TORN"


def read_until(deadline: float, library: Library, folder: Path, number: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    while time.monotonic() < deadline:
        name = FILES[number % len(FILES)]
        seen[outcome_of((library.load, library.map)[number // len(FILES) % 2], folder / name)] += 1
        number += 1
    return seen


def read_and_tell(deadline: float, library: Library, folder: Path, number: int) -> str:
    return encode(read_until(deadline, library, folder, number))


def forked(work: Callable[[], str]) -> tuple[int, int]:
    """A child that does `work`, and where its answer can be read."""
    answer, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answer)
        os.write(write, work().encode())
        os._exit(0)
    os.close(write)
    return child, answer


def result_of(child: int, answer: int) -> str:
    with open(answer) as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return text if code == 0 else f"died: {signal.Signals(-code).name}=1" if code < 0 else f"exit {code}=1"


def encode(seen: Counter[str]) -> str:
    return ";".join(f"{what}={count}" for what, count in seen.items())


def decode(text: str) -> Counter[str]:
    parts = (part.rpartition("=") for part in text.split(";") if part)
    return Counter({what: int(count) for what, _, count in parts})


def by_processes(library: Library, folder: Path, readers: int, deadline: float) -> Counter[str]:
    started = [
        forked(functools.partial(read_and_tell, deadline, library, folder, number))
        for number in range(readers)
    ]
    seen: Counter[str] = Counter()
    for child in started:
        seen += decode(result_of(*child))
    return seen


def by_threads(library: Library, folder: Path, readers: int, deadline: float) -> Counter[str]:
    def all_threads() -> str:
        with ThreadPoolExecutor(readers) as pool:
            work = [pool.submit(read_until, deadline, library, folder, number) for number in range(readers)]
            return encode(sum((future.result() for future in work), Counter()))

    return decode(result_of(*forked(all_threads)))  # in a child: a mapping can be fatal to its process


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--library", choices=NAMES)
    options = parser.parse_args()
    if options.library is None:
        for name in NAMES:
            arguments = ["--readers", options.readers, "--seconds", options.seconds]
            print(in_processes_of(name, __file__, *arguments), end="", flush=True)
        return
    torch.set_num_threads(1)
    library = this_library(options.library)
    for how, read in (("processes", by_processes), ("threads", by_threads)):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "folder").mkdir()
            for name in FILES:
                library.save(version(0), folder / name)
            deadline = time.monotonic() + options.seconds
            writer = forked(functools.partial(write_until, deadline, library, folder))
            seen = read(library, folder, options.readers, deadline)
            versions = result_of(*writer)
        told = ", ".join(f"{count} {what}" for what, count in sorted(seen.items(), reverse=True))
        print(f"{options.library:<16} {options.readers} {how}, {versions} versions: {told}", flush=True)


if __name__ == "__main__":
    main()
