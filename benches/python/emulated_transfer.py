"""Disk to GPU on the CUDA emulator: what the loader itself costs, on a link of a known speed.

Copies take the time the link would (25 GB/s, then 4 GB/s) and no host CPU, so what remains is the loader's:
its reads, its waiting, its memory. Compares this package with flashpack 0.4.5 through the same call,
`read_flashpack_file(path, device="cuda")`, in fresh processes, in turn. The yardstick is the larger of the
raw time to read the file with two threads and the time the link takes for the bytes; digests have no core of
their own here, so the time to read and digest alone, `flashpack.verify_file`, is told beside it.

The file is in the page cache as downloads and copies leave it there, brought by one reader in file order:
where threads that jump about have brought it, the pages are small, and to read them takes twice as long.
These are no figures of a GPU. Bytes are checked, on a small file with copies that move data, before anything
is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/fakecuda/python"), str(ROOT / "tests/python/support")]

import fakecuda  # noqa: E402
import flashpack  # noqa: E402
import measure  # noqa: E402
import torch  # noqa: E402
import upstream  # noqa: E402

LINKS = {"25 GB/s": 25e9, "4 GB/s": 4e9}
READ_BYTES = 2 << 20  # stays in a processor's cache

CHILD = """
import inspect, json, sys, time
import fakecuda, torch
from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file
path, verify, expected = sys.argv[1:4]
options = {"verify": verify == "yes"} if "verify" in inspect.signature(read_flashpack_file).parameters else {}
torch.zeros(1, device="cuda")
wall, cpu = time.perf_counter(), time.process_time()
storage, footer = read_flashpack_file(path, device="cuda", **options)
torch.cuda.synchronize()
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
if expected:
    want = torch.load(expected)
    for name, tensor in iterate_from_flash_tensor(storage, footer):
        assert torch.equal(tensor.cpu(), want[name]), name
print(json.dumps({"wall": wall, "cpu": cpu, "pinned": fakecuda.counter("pinned_bytes_peak")}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=float, default=2.5e9)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    here = [str(Path(flashpack.__file__).parents[1])]
    packages = {
        "flashpack, verified": (here, "yes"),
        "flashpack": (here, "no"),
        "flashpack 0.4.5": ([str(upstream.install())], "no"),
    }
    with tempfile.TemporaryDirectory() as folder:
        check_bytes(packages, Path(folder))
        path = write_model(Path(folder, "model.flashpack"), int(arguments.bytes))
        for link, speed in LINKS.items():
            compare(link, speed, path, packages, arguments.rounds)


def write_model(path: Path, size: int) -> Path:
    layers = {f"layers.{i}.weight": torch.ones(size // 400, dtype=torch.bfloat16) for i in range(200)}
    flashpack.save_file(layers, path)
    measure.make_cold(path)  # a write leaves other pages than a read
    return path


def check_bytes(packages: dict[str, tuple[list[str], str]], folder: Path) -> None:
    tensors = {"a": torch.randn(1000, 3001), "b": torch.randint(0, 9, (12345,))}
    path, expected = folder / "small.flashpack", folder / "small.pt"
    flashpack.save_file(tensors, path)
    torch.save(tensors, expected)
    for package in packages.values():
        load(path, package, 25e9, expected=str(expected), data=1)


def load(
    path: Path, package: tuple[list[str], str], speed: float, *, expected: str = "", data: int = 0
) -> dict[str, float]:
    folders, verify = package
    env = fakecuda.environment(bw_h2d=speed, data=data)
    env["PYTHONPATH"] = os.pathsep.join([*folders, env["PYTHONPATH"]])
    command = [sys.executable, "-c", CHILD, str(path), verify, expected]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def raw_read_seconds(path: Path, threads: int = 2) -> float:
    """Time to read the file from the page cache into small buffers, which is all that staging needs."""
    size = path.stat().st_size
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:

        def read(first: int) -> None:
            buffer = bytearray(READ_BYTES)
            for offset in range(first * READ_BYTES, size, threads * READ_BYTES):
                os.preadv(file.fileno(), [buffer], offset)

        workers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return time.perf_counter() - started


def compare(
    link: str, speed: float, path: Path, packages: dict[str, tuple[list[str], str]], rounds: int
) -> None:
    size = path.stat().st_size
    raw: list[float] = []
    digested: list[float] = []
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in packages}
    for _ in range(rounds):
        measure.make_hot(path)
        started = time.perf_counter()
        flashpack.verify_file(path)
        digested.append(time.perf_counter() - started)
        for name, package in packages.items():
            measure.prepare(path, "hot")
            raw.append(raw_read_seconds(path))
            run = load(path, package, speed)
            runs[name].append({**run, "ratio": run["wall"] / max(raw[-1], size / speed)})
    print(
        f"{size / 1e9:.2f} GB over {link}, medians of {rounds}: raw read {statistics.median(raw):.3f} s "
        f"({min(raw):.3f}-{max(raw):.3f}), read and digest {statistics.median(digested):.3f} s, "
        f"link {size / speed:.3f} s; bound: the larger of raw read and link, as of just before"
    )
    for name, results in runs.items():
        wall, cpu, ratio = (
            statistics.median(result[key] for result in results) for key in ("wall", "cpu", "ratio")
        )
        pinned = max(result["pinned"] for result in results)
        print(
            f"  {name:20} {wall:6.3f} s = {ratio:5.2f} x bound, CPU {cpu / size * 1e9:5.3f} s/GB, "
            f"pinned peak {pinned / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    main()
