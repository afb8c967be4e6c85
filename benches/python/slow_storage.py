"""Loads from storage that makes readers wait: ours, the peers', and bare direct reads.

Mounts `benches/slowfs`, which adds a latency, a rate for each request and one for all, over the models of
`run.py`. Checks the bytes that each contender gives, then times them in fresh processes, in turn, each with
nothing of its file in the page cache, and prints medians and what they come to beside each other. The files
behind the mount are in the page cache: what takes time is what slowfs adds. Needs /dev/fuse, and root.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import limits
import loads
import measure
import peers
import report
from limits import Limit
from loads import Load

sys.path[:0] = [str(peers.ROOT / "tests/fakecuda/python"), str(peers.ROOT / "tests/python")]

BUILD = peers.ROOT / "target/bench-models"
RESULTS = peers.ROOT / "benches/results"
TIMEOUT_SECONDS = 900
LINK = 25e9  # bytes a second to the emulated device
SETTINGS = {
    "20 ms, 50 MB/s a request": {"latency_ms": 20, "request_mb_per_s": 50, "total_mb_per_s": 1000},
    "5 ms, 200 MB/s a request": {"latency_ms": 5, "request_mb_per_s": 200, "total_mb_per_s": 2000},
}
Row = dict[str, Any]
COLUMNS = (
    *("setting", "contender", "model", "bytes", "round", "seconds", "cpu_s", "peak_rss"),
    *("requests", "requested_bytes", "most_in_flight", "pinned", "error"),
)


def to_device() -> Callable[[Path], loads.State]:
    import flashpack
    import torch

    torch.zeros(1, device="cuda")

    def load(path: Path) -> loads.State:
        state = flashpack.load_file(path, "cuda")
        torch.cuda.synchronize()
        return state

    return load


@dataclass(frozen=True)
class Contender:
    """A load of a model; until every page has been touched where `touched`."""

    name: str
    load: Load | Limit
    model: str = "whole"
    touched: bool = False

    @property
    def peer(self) -> str:
        return self.load.peer if isinstance(self.load, Load) else "none"


def _find(kind: list[Load], name: str) -> Load:
    return next(load for load in kind if load.name == name)


def _peers() -> Iterator[Contender]:
    for name in (
        *("flashpack 0.4.5, CPU_PARALLEL_READ", "safetensors 0.8.0, pread"),
        *("fastsafetensors 0.5.0, nogds", "runai-model-streamer 0.17.0"),
    ):
        yield Contender(name, _find(loads.EAGER, name))
    yield Contender("safetensors 0.8.0", _find(loads.LAZY, "safetensors 0.8.0"), touched=True)


EAGER, MAPPED, DEVICE, ONE, SHARDS = (
    *("eager, verified", "mapped, touched", "to an emulated device"),
    *("200 tensors, one file", "200 tensors, a shard each"),
)
_OURS = _find(loads.EAGER, "flashpack")
CONTENDERS = [
    *(Contender(limit.name, limit) for limit in limits.SLOW),
    Contender(EAGER, _OURS),
    Contender("eager", _find(loads.EAGER, "flashpack, not verified")),
    Contender(MAPPED, _find(loads.LAZY, "flashpack"), touched=True),
    Contender("unconverted safetensors, eager", _find(loads.EAGER, "flashpack, of .safetensors")),
    Contender(DEVICE, Load(DEVICE, peers.OURS, ".flashpack", to_device)),
    Contender(ONE, _OURS, "parts"),
    Contender(SHARDS, _OURS, "shards"),
    *_peers(),
]
RAW = tuple(limit.name for limit in limits.SLOW)
PEERS = tuple(contender.name for contender in _peers())
BARS = [  # setting, ours, those it is compared with (the fastest of them), how much faster at least
    *((0, ours, RAW, 0.9) for ours in (EAGER, MAPPED)),
    *((0, ours, ("runai-model-streamer 0.17.0",), 1.5) for ours in (EAGER, MAPPED)),
    *((0, ours, ("flashpack 0.4.5, CPU_PARALLEL_READ",), 2.5) for ours in (EAGER, MAPPED)),
    *((0, ours, ("safetensors 0.8.0", "safetensors 0.8.0, pread"), 10) for ours in (EAGER, MAPPED)),
    *((1, ours, RAW, 0.9) for ours in (EAGER, MAPPED)),
    *((1, ours, PEERS, 1.0) for ours in (EAGER, MAPPED)),
    *((setting, DEVICE, (EAGER,), 0.9) for setting in (0, 1)),
    (1, SHARDS, (ONE,), 1 / 1.2),
]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run(json.loads(sys.argv[2]))), flush=True)
        os._exit(0)  # nothing is gained by freeing gigabytes
    arguments = parse(sys.argv[1:])
    chosen = [each for each in CONTENDERS if each.name in (arguments.only or {each.name})]
    bench = Bench(arguments.model, arguments.scale)
    rows: list[Row] = []
    for setting in arguments.settings:
        checked = bench.rounds(setting, chosen, 1, check=True)
        failed = {row["contender"] for row in checked if row["error"]}
        good = [each for each in chosen if each.name not in failed]
        timed = bench.rounds(setting, good, arguments.rounds, check=False) if arguments.rounds else checked
        rows += [*timed, *(row for row in checked if row["error"] and row not in timed)]
        medians = show(setting, report.select(rows, setting=setting))
        if not arguments.quick:
            compare(setting, medians)
    if arguments.csv:
        print(write(rows, ["python", "benches/python/slow_storage.py", *sys.argv[1:]]))
    if any(row["error"] for row in rows if row["contender"] not in PEERS):
        raise SystemExit("a load of this package gave an error or wrong bytes")


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the checks, on a small model")
    parser.add_argument("--scale", type=float, help="of the models' bytes (0.3 of 1.3B, 805 MB)")
    parser.add_argument("--rounds", type=int, help="timed runs of each contender (5)")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS)
    names = [each.name for each in CONTENDERS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="CONTENDER", help=", ".join(names))
    parser.add_argument("--csv", action="store_true", help="write the runs into benches/results")
    arguments = parser.parse_args(words)
    arguments.model = "dtypes" if arguments.quick else "1.3B"
    arguments.settings = arguments.settings or list(SETTINGS)[1 if arguments.quick else 0 :]
    if arguments.scale is None:
        arguments.scale = 0.02 if arguments.quick else 0.3
    if arguments.rounds is None:
        arguments.rounds = 0 if arguments.quick else 5
    return arguments


class Bench:
    """The models' files, and runs of contenders on them."""

    def __init__(self, model: str, scale: float) -> None:
        import models

        parts = (scale / 0.3 if scale >= 0.3 else 0.01) if model == "1.3B" else 0.01
        self.models = {"whole": (model, scale), "parts": ("parts", parts), "shards": ("parts", parts)}
        self.folders = {name: models.build(*made, BUILD) for name, made in self.models.items()}
        self.folders["shards"] = sharded(self.folders["parts"], *self.models["parts"])
        self.tiny = models.build(*models.TINY, BUILD)

    def rounds(self, setting: str, chosen: list[Contender], rounds: int, *, check: bool) -> list[Row]:
        import slowfs

        rows = []
        with (
            tempfile.TemporaryDirectory() as mount,
            slowfs.mounted(BUILD, Path(mount), **SETTINGS[setting]),
        ):
            for number in range(rounds):
                # By chance, as a run may leave something to its successor.
                order = random.Random(f"{setting} {number}").sample(chosen, len(chosen))
                for contender in order:
                    say(f"{setting}: {contender.name}, {'checked' if check else f'round {number}'}")
                    result = self.run(contender, Path(mount), check=check)
                    size = sum(file.stat().st_size for file in files(self.path(contender, BUILD)))
                    about = {"setting": setting, "contender": contender.name, "model": contender.model}
                    rows.append({**about, "bytes": size, "round": number, "error": "", **result})
        return rows

    def path(self, contender: Contender, root: Path) -> Path:
        """What a contender loads, with its models below `root`."""
        folder = root / self.folders[contender.model].name
        suffix = contender.load.suffix if isinstance(contender.load, Load) else ".flashpack"
        return folder if contender.model == "shards" else folder / f"model{suffix}"

    def run(self, contender: Contender, mount: Path, *, check: bool) -> Row:
        for file in files(self.path(contender, BUILD)):
            measure.make_hot(file)
        job = {
            "contender": contender.name,
            "path": str(self.path(contender, mount)),
            "source": str(self.path(contender, BUILD)),
            "mount": str(mount),
            "tiny": str(self.tiny),
            "model": self.models[contender.model],
            "check": check,
        }
        command = [sys.executable, __file__, "--child", json.dumps(job)]
        try:
            env = environment(contender, data=check)
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
            )
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return {"error": str(error)[:300]}
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
        result: Row = json.loads(done.stdout.splitlines()[-1])
        return result


def environment(contender: Contender, *, data: bool) -> dict[str, str]:
    if contender.name != DEVICE:
        return peers.environment(contender.peer)
    import fakecuda

    return fakecuda.environment(bw_h2d=LINK, data=int(data))  # without data copies take no host's time


def sharded(folder: Path, model: str, scale: float) -> Path:
    """The model with a file for each tensor, beside `folder`, which has it in one."""
    import flashpack
    import models

    target = folder.with_name(f"{folder.name}-shards")
    if not target.exists():
        tensors = models.state(model, scale)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix="new-"))
        largest = max(tensor.nbytes for tensor in tensors.values())
        flashpack.save_file(tensors, fresh / "model.flashpack", max_shard_size=largest)
        fresh.rename(target)
    return target


def files(path: Path) -> list[Path]:
    return [*path.iterdir()] if path.is_dir() else [path]


def run(job: Row) -> Row:
    """In a process of its own: what a load cost."""
    contender = next(each for each in CONTENDERS if each.name == job["contender"])
    path = Path(job["path"])
    work = of_limit(contender.load, path) if isinstance(contender.load, Limit) else of_load(contender, job)
    for file in files(path):
        measure.make_cold(file)
    measure.ready_memory(sum(file.stat().st_size for file in files(path)))
    report = Path(job["mount"], ".slowfs")
    report.read_text()
    result, cost = measure.measured(work)
    if contender.touched:
        cost = measure.then_touched(cost, result.values())
    told = json.loads(report.read_text())
    if job["check"]:
        check(result, job)
    return {
        "seconds": cost["touched_wall_s" if contender.touched else "wall_s"],
        "cpu_s": cost["touched_cpu_s" if contender.touched else "cpu_s"],
        "peak_rss": cost["peak_rss"],
        "requests": told["requests"],
        "requested_bytes": told["bytes"],
        "most_in_flight": told["most_in_flight"],
        "pinned": pinned() if contender.name == DEVICE else "",
    }


def of_limit(limit: Limit, path: Path) -> Callable[[], Any]:
    return limit.start(path)


def of_load(contender: Contender, job: Row) -> Callable[[], Any]:
    assert isinstance(contender.load, Load)
    call, path = contender.load.start(), Path(job["path"])
    peers.version(contender.peer)
    # What is imported, opened and started only on first use is so now.
    call(Path(job["tiny"], f"model{contender.load.suffix}"))
    return lambda: call(path)


def check(result: Any, job: Row) -> None:
    """Raise ValueError unless the load gave what was written."""
    if isinstance(result, memoryview):
        return limits.check(Path(job["source"]), result)
    import models

    return models.check({name: tensor.cpu() for name, tensor in result.items()}, *job["model"])


def pinned() -> int:
    import fakecuda

    return fakecuda.counter("pinned_bytes_peak")


def show(setting: str, rows: list[Row]) -> dict[str, float | None]:
    """Prints a table of medians, which it gives."""
    rounds = len({row["round"] for row in rows})
    print(f"\n{setting}, {SETTINGS[setting]['total_mb_per_s']} MB/s in all (medians of {rounds})")
    headings = (
        ("seconds", 9),
        ("min-max", 16),
        ("GB/s", 7),
        ("requests", 10),
        ("in flight", 10),
        ("pinned MiB", 11),
    )
    print(" " * 42 + "".join(f"{title:>{width}}" for title, width in headings))
    medians = {}
    for name in [each.name for each in CONTENDERS]:
        if runs := report.select(rows, contender=name):
            medians[name] = report.median(runs, "seconds")
            print(line(name, runs, medians[name]))
    return medians


def compare(setting: str, medians: dict[str, float | None]) -> None:
    print(f"\n{'':42}{'against':>44}{'times as fast':>15}{'bar':>6}")
    for number, name, others, least in BARS:
        known = {other: seconds for other in others if (seconds := medians.get(other))}
        ours = medians.get(name)
        if setting == list(SETTINGS)[number] and known and ours:
            best = min(known, key=lambda other: known[other])
            print(f"  {name:40}{best:>44}{known[best] / ours:15.2f}{least:6.2f}")


def line(name: str, runs: list[Row], seconds: float | None) -> str:
    if seconds is None:
        return f"  {name:40} {runs[0]['error']}"
    walls = [row["seconds"] for row in runs if not row["error"]]
    told = [report.median(runs, column) for column in ("requests", "most_in_flight", "pinned")]
    cells = [f"{seconds:9.3f}", f"{f'{min(walls):.3f}-{max(walls):.3f}':>16}"]
    cells += [f"{runs[0]['bytes'] / seconds / 1e9:7.2f}", f"{told[0]:10.0f}", f"{told[1]:10.0f}"]
    cells += [f"{told[2] / 2**20:11.0f}"] if told[2] is not None else []
    return f"  {name:40}" + "".join(cells)


def write(rows: list[Row], command: list[str]) -> Path:
    import flashpack
    import machine

    now = datetime.datetime.now(datetime.timezone.utc)
    about = {
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "version": f"flashpack {flashpack.__version__}",
        **machine.describe(BUILD),
    }
    path = RESULTS / f"slow_storage-{now.date().isoformat()}.csv"
    with path.open("w", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in about.items())
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in rows:
            table.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return path


def say(text: str) -> None:
    now = datetime.datetime.now().strftime("%H:%M:%S")
    print(f"{now} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
