"""Contenders in turn, each in a process of its own: checked, then timed; what is printed and kept of that."""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import limits
import measure
import peers
import report

sys.path[:0] = [str(peers.ROOT / "tests/fakecuda/python"), str(peers.ROOT / "tests/python/support")]

BUILD = peers.ROOT / "target/bench-models"
RESULTS = peers.ROOT / "benches/results"
TIMEOUT_SECONDS = 900
LINK = 25e9  # bytes a second to the emulated device
Row = dict[str, Any]
COLUMNS = (
    *("setting", "contender", "model", "bytes", "round", "seconds", "cpu_s", "peak_rss"),
    *("requests", "requested_bytes", "most_in_flight", "pinned", "error"),
)
Bar = tuple[int, str, Sequence[str], float]
"""Number of a setting, contender, the names whose fastest it is compared with, times as fast at least."""


class Contender(Protocol):
    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=Contender)


def parse(words: list[str], about: str | None, names: list[str], settings: list[str], scale: float) -> Any:
    """The arguments of a benchmark of these contenders; `scale` is that of the model that is timed."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="only the checks, on a small model")
    parser.add_argument("--scale", type=float, help=f"of the model's bytes ({scale} of 1.3B)")
    parser.add_argument("--rounds", type=int, help="timed runs of each contender (5)")
    parser.add_argument("--settings", nargs="+", choices=settings)
    parser.add_argument("--only", nargs="+", choices=names, metavar="CONTENDER", help=", ".join(names))
    parser.add_argument("--csv", action="store_true", help="write the runs into benches/results")
    arguments = parser.parse_args(words)
    arguments.model = "dtypes" if arguments.quick else "1.3B"
    if arguments.scale is None:
        arguments.scale = 0.02 if arguments.quick else scale
    if arguments.rounds is None:
        arguments.rounds = 0 if arguments.quick else 5
    return arguments


def perform(
    program: str,
    arguments: Any,
    contenders: list[C],
    rounds: Callable[[str], Rounds[C]],
    titles: Mapping[str, str],
    bars: Sequence[Bar],
    peers: Sequence[str],
) -> None:
    """Check and time the contenders in each setting, and print what that comes to.

    `titles` are those of all settings. Raises SystemExit for an error of a contender that is none of `peers`.
    """
    names = [each.name for each in contenders]
    chosen = [each for each in contenders if each.name in (arguments.only or {each.name})]
    rows: list[Row] = []
    for setting in arguments.settings:
        rows += checked_then_timed(rounds(setting), chosen, arguments.rounds)
        medians = show(titles[setting], names, report.select(rows, setting=setting))
        if not arguments.quick:
            compare(list(titles).index(setting), bars, medians)
    if arguments.csv:
        print(write(program, rows, ["python", f"benches/python/{program}.py", *sys.argv[1:]]))
    if any(row["error"] for row in rows if row["contender"] not in peers):
        raise SystemExit("a load of this package gave an error or wrong bytes")


Rounds = Callable[[list[C], int, bool], list[Row]]
"""Contenders, how many rounds of them, whether their bytes are checked."""


def checked_then_timed(rounds: Rounds[C], chosen: list[C], count: int) -> list[Row]:
    """The rows of the timed rounds, and those of contenders that did not get that far."""
    checked = rounds(chosen, 1, True)
    failed = {row["contender"] for row in checked if row["error"]}
    good = [each for each in chosen if each.name not in failed]
    timed = rounds(good, count, False) if count else checked
    return [*timed, *(row for row in checked if row["error"] and row not in timed)]


def in_turn(
    setting: str, chosen: list[C], count: int, check: bool, run: Callable[[C, bool], Row]
) -> list[Row]:
    rows = []
    for number in range(count):
        # By chance, as a run may leave something to its successor.
        for contender in random.Random(f"{setting} {number}").sample(chosen, len(chosen)):
            say(f"{setting}: {contender.name}, {'checked' if check else f'round {number}'}")
            about = {"setting": setting, "contender": contender.name, "round": number, "error": ""}
            rows.append({**about, **run(contender, check)})
    return rows


def in_a_child(script: str, job: Row, env: Mapping[str, str]) -> Row:
    """What `script --child job` prints, or its error."""
    command = [sys.executable, script, "--child", json.dumps(job)]
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        return {"error": str(error)[:300]}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    result: Row = json.loads(done.stdout.splitlines()[-1])
    return result


def environment(peer: str, *, emulated: bool, data: bool) -> dict[str, str]:
    """Of a process that imports this peer, or has an emulated device, which moves data only with `data`."""
    if not emulated:
        return peers.environment(peer)
    import fakecuda

    return fakecuda.environment(bw_h2d=LINK, data=int(data))  # without data copies take no host's time


def to_device() -> Callable[[Any], dict[str, Any]]:
    import flashpack
    import torch

    torch.zeros(1, device="cuda")

    def load(path: Any) -> dict[str, Any]:
        state: dict[str, Any] = flashpack.load_file(path, "cuda")
        torch.cuda.synchronize()
        return state

    return load


def check(result: Any, job: Row) -> None:
    """Raise ValueError unless the load gave what was written."""
    if isinstance(result, memoryview):
        return limits.check(Path(job["source"]), result)
    import models

    return models.check({name: tensor.cpu() for name, tensor in result.items()}, *job["model"])


def pinned() -> int:
    import fakecuda

    return fakecuda.counter("pinned_bytes_peak")


def cost(work: Callable[[], Any], size: int, *, touched: bool) -> tuple[Any, Row]:
    """What `work` gives, and what it took (`touched`: until every page of that has been touched)."""
    measure.ready_memory(size)
    result, spent = measure.measured(work)
    if touched:
        spent = measure.then_touched(spent, result.values())
    prefix = "touched_" if touched else ""
    return result, {
        "seconds": spent[f"{prefix}wall_s"],
        "cpu_s": spent[f"{prefix}cpu_s"],
        "peak_rss": spent["peak_rss"],
    }


def show(title: str, names: list[str], rows: list[Row]) -> dict[str, float | None]:
    """Prints a table of medians, which it gives."""
    rounds = len({row["round"] for row in rows})
    print(f"\n{title} (medians of {rounds})")
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
    for name in names:
        if runs := report.select(rows, contender=name):
            medians[name] = report.median(runs, "seconds")
            print(line(name, runs, medians[name]))
    return medians


def compare(number: int, bars: Sequence[Bar], medians: Mapping[str, float | None]) -> None:
    """Prints what the medians of the setting of this number come to beside its bars."""
    print(f"\n{'':42}{'against':>44}{'times as fast':>15}{'bar':>6}")
    for setting, name, others, least in bars:
        known = {other: seconds for other in others if (seconds := medians.get(other))}
        ours = medians.get(name)
        if setting == number and known and ours:
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


def write(name: str, rows: list[Row], command: list[str]) -> Path:
    """Today's CSV of the benchmark `name`."""
    import flashpack
    import machine

    now = datetime.datetime.now(datetime.timezone.utc)
    about = {
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "version": f"flashpack {flashpack.__version__}",
        **machine.describe(BUILD),
    }
    path = RESULTS / f"{name}-{now.date().isoformat()}.csv"
    with path.open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in about.items())
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in rows:
            table.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return path


def say(text: str) -> None:
    now = datetime.datetime.now().strftime("%H:%M:%S")
    print(f"{now} {text}", file=sys.stderr, flush=True)
