"""Whole loads and saves, ours and the peers', side by side with what the machine allows.

Builds the models, installs every peer in a folder of its own, checks the bytes that each contender gives,
then times them in fresh processes, interleaved, and prints medians, writes a CSV and draws the charts.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import models
import peers
import report
from groups import GROUPS

BUILD = peers.ROOT / "target/bench-models"
TIMEOUT_SECONDS = 600
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A contender on a model, in a state of the page cache."""

    model: str
    group: str
    state: str
    name: str
    peer: str
    limit: bool


def main() -> None:
    arguments = parse(sys.argv[1:])
    cases = list(selected(arguments))
    folders = {name: built(name, arguments.scale) for name in arguments.models}
    bench = Bench(arguments.scale, folders)
    command = shlex.join(["python", "benches/python/run.py", *sys.argv[1:]])
    results = report.Results(arguments.out, command, BUILD)
    rows: list[Row] = []
    for model in arguments.models:
        of_model = [case for case in cases if case.model == model]
        costs = bench.check(of_model)
        rows += [] if arguments.rounds else costs
        for timed in bench.time(of_model, arguments.rounds):
            rows += timed
            results.write(rows)  # stays if the rest is stopped
    path = results.write(rows)
    report.show(rows)
    print(f"\n{path}")
    draw(path)
    if any(case.peer in (peers.OURS, "none") and key(case) in bench.errors for case in cases):
        raise SystemExit("a load or save of this package gave an error or wrong bytes")


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="only the checks, on a small model: shows that all works"
    )
    parser.add_argument("--scale", type=float, help="of the models' bytes (1)")
    parser.add_argument(
        "--rounds", type=int, help="timed runs of each contender (5); 0 shows the checks' costs"
    )
    parser.add_argument("--models", nargs="+", choices=models.WHOLE)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--states", nargs="+", choices=["hot", "cold"])
    parser.add_argument("--peers", nargs="+", choices=peers.PEERS, help="all, unless named")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args(words)
    quick = {"scale": 0.02, "rounds": 0, "models": ["dtypes"], "states": ["hot"], "out": BUILD / "quick"}
    whole = {
        "scale": 1.0,
        "rounds": 5,
        "models": list(models.WHOLE),
        "states": ["hot", "cold"],
        "out": peers.ROOT / "benches/results",
    }
    for option, value in (quick if arguments.quick else whole).items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)
    return arguments


def selected(arguments: argparse.Namespace) -> Iterator[Case]:
    for model in arguments.models:
        for name, group in GROUPS.items():
            if name not in arguments.groups:
                continue
            for state in (state for state in group.states if state in arguments.states):
                for limit in group.limits[state]:
                    yield Case(model, name, state, limit.name, "none", limit=True)
                for contender in group.contenders:
                    if not arguments.peers or contender.peer in arguments.peers:
                        yield Case(model, name, state, contender.name, contender.peer, limit=False)


def built(model: str, scale: float) -> Path:
    say(f"model {model}, {sum(spec.nbytes for spec in models.specs(model, scale)) / 1e6:.0f} MB")
    return models.build(model, scale, BUILD)


class Bench:
    """Runs cases; those that failed are not run again, the error stays in their rows."""

    def __init__(self, scale: float, folders: dict[str, Path]) -> None:
        self.scale, self.folders = scale, folders
        self.tiny = models.build(*models.TINY, BUILD)
        self.errors: dict[tuple[str, str, str], str] = {}

    def check(self, cases: list[Case]) -> list[Row]:
        """Check each contender's bytes on each model, one process for each peer; what the runs cost."""
        rows = []
        for model, peer in dict.fromkeys((case.model, case.peer) for case in cases):
            say(f"checking the bytes of {peer} on {model}")
            first: dict[tuple[str, str, str], Case] = {}
            for case in cases:
                if (case.model, case.peer) == (model, peer):
                    first.setdefault(key(case), case)
            for case, result in zip(first.values(), self.run([*first.values()], check=True), strict=True):
                if "error" in result:
                    self.errors[key(case)] = result["error"].replace(f"{peers.ROOT}/", "")
                    say(f"  {case.group}, {case.name}: {result['error']}")
                rows.append(self.row(case, 0, result))
        return rows

    def time(self, cases: list[Case], rounds: int) -> Iterator[list[Row]]:
        """The rows of each group in a state of the page cache, as they become known."""
        for place in dict.fromkeys((case.model, case.group, case.state) for case in cases):
            say("timing " + ", ".join(place))
            group = [case for case in cases if (case.model, case.group, case.state) == place]
            for file in self.folders[place[0]].glob("model.*"):
                # What a write has left in the page cache lies there in other units than what a read brings.
                measure.make_cold(file)
            rows: list[Row] = []
            for number in range(rounds):
                # By chance, as a run may leave something to its successor: a disk at work, say.
                order = random.Random(f"{place} {number}").sample(group, len(group))
                rows += [self.timed(case, number) for case in order]
            yield rows

    def timed(self, case: Case, number: int) -> Row:
        known = self.errors.get(key(case))
        (result,) = [{"error": known}] if known else self.run([case], check=False)
        if "error" in result:
            self.errors[key(case)] = result["error"]
        return self.row(case, number, result)

    def row(self, case: Case, number: int, result: Row) -> Row:
        specs = models.specs(case.model, self.scale)
        about = {"model": case.model, "bytes": sum(spec.nbytes for spec in specs), "tensors": len(specs)}
        what = {"group": case.group, "state": case.state, "contender": case.name, "limit": int(case.limit)}
        return {**about, **what, "round": number, "checked": int(key(case) not in self.errors), **result}

    def run(self, cases: list[Case], *, check: bool) -> list[Row]:
        """The results of the cases of one peer, from one process; its crash is the error of each of them."""
        jobs = [
            {
                "group": case.group,
                "state": case.state,
                "contender": case.name,
                "model": case.model,
                "scale": self.scale,
                "folder": str(self.folders[case.model]),
                "tiny": str(self.tiny),
                "check": check,
            }
            for case in cases
        ]
        try:
            environment = peers.environment(cases[0].peer)
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("child.py")), json.dumps(jobs)],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return [{"error": str(error)[:300]} for _ in cases]
        if done.returncode == 0:
            results: list[Row] = json.loads(done.stdout.splitlines()[-1])
            return results
        if len(cases) > 1:
            return [result for case in cases for result in self.run([case], check=check)]
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [{"error": f"exit code {done.returncode}: {last}"[:300]}]


def key(case: Case) -> tuple[str, str, str]:
    """The state of the page cache does not change what a contender gives."""
    return (case.model, case.group, case.name)


def draw(path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        print("no charts: matplotlib is not installed (`make bench` installs it)")
        return
    import plots

    for chart in plots.draw(path):
        print(chart)


def say(text: str) -> None:
    now = datetime.datetime.now().strftime("%H:%M:%S")
    print(f"{now} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
