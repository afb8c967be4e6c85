"""FlashPack on a GPU, from a folder of wheels, without network or compiler: checks, rates, peers.

    python tests/hardware --wheels FOLDER

needs an interpreter that has torch, and a GPU. Writes what came of it to one JSON and prints the table of
docs/benchmarks.md. What cannot run here is `not run`, and says why; it never counts as passed. The exit
status is 0 unless a check, a sweep or a load of flashpack failed. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "benches/python")]

import machine  # noqa: E402

from hardware import checks, loads, report, sweep  # noqa: E402
from hardware.child import CannotRunError, Outcome, call, environment  # noqa: E402
from hardware.wheels import Wheels, only  # noqa: E402

MIB = 1 << 20
SWEEP_BYTES = 1 << 30  # of the file that is read again and again
SANITIZERS = ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"]
SANITIZED = ("--tool", "memcheck", "--error-exitcode", "99", "--target-processes", "all")
PARTS = ("checks", "sweep", "loads")


@dataclass(frozen=True)
class Sizes:
    """Bytes of a check, of a sweep's copies, and of its pieces; numbers of streams and readers (`ways`)."""

    check: int
    copy: int
    pieces: Sequence[int]
    ways: Sequence[int]


USUAL = Sizes(64 * MIB, 512 * MIB, [MIB << shift for shift in range(7)], [1, 2, 4, 8, 16])
SMALL = Sizes(6 * MIB, 8 * MIB, [MIB, 4 * MIB], [1, 2])


class Kit:
    """What is under test and where, and how much time is left."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.device: str = arguments.device
        self.rounds: int = arguments.rounds
        self.bytes: int = int(arguments.bytes)
        self.only: list[str] = arguments.checks
        self.sizes = SMALL if arguments.small else USUAL
        self.folder = folder
        self.wheels = Wheels(arguments.wheels, folder / "packages")
        self._end = time.monotonic() + 60 * arguments.minutes
        others = {contender.version for contender in loads.CONTENDERS if contender.package == "flashpack"}
        own = [version for version in self.wheels.versions("flashpack") if version not in others]
        self.packages = self.wheels.folders("flashpack", only(own, "this flashpack", arguments.wheels))

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def run(self, function: Callable[..., Any], **options: Any) -> Outcome:
        """As `child.call`, with the package under test; not if the time is over."""
        if self.left() <= 0:
            return {"outcome": "not run", "why": "no time was left"}
        return call(function, options.pop("packages", self.packages), device=self.device, **options)

    def written(self, name: str, size: int) -> dict[str, str]:
        """Files of a model of `size` bytes, by suffix."""
        folder = self.folder / name
        folder.mkdir()
        outcome = call(loads.write, self.packages, folder=str(folder), size=size)
        if outcome["outcome"] != "passed":
            raise SystemExit(outcome["why"])
        files: dict[str, str] = outcome["result"]
        return files

    def about(self) -> dict[str, Any]:
        outcome = self.run(checks.about)
        if outcome["outcome"] != "passed":
            raise SystemExit(outcome["why"])
        about: dict[str, Any] = outcome["result"]
        if not about["flashpack_file"].startswith(str(self.packages[0])):
            raise SystemExit(f"flashpack came from {about['flashpack_file']}, not from its wheel")
        return about

    # --- (a), (b) ---

    def checks(self, about: dict[str, Any]) -> dict[str, Outcome]:
        found = {}
        arguments = {"folder": str(self.folder), "size": self.sizes.check}
        for check in checks.CHECKS:
            if not self.only or check.name in self.only:
                found[check.name] = self.run(check.program, env=check.env, timeout=check.timeout, **arguments)
                tell(check.name, found[check.name])
        if not self.only:
            found["compute-sanitizer"] = self.sanitized(about, arguments)
            tell("compute-sanitizer", found["compute-sanitizer"])
        return found

    def sanitized(self, about: dict[str, Any], arguments: dict[str, Any]) -> Outcome:
        if about["emulated"]:
            return {"outcome": "not run", "why": "the CUDA here is emulated"}
        tool = next(filter(None, map(shutil.which, SANITIZERS)), None)
        if not tool:
            return {"outcome": "not run", "why": "compute-sanitizer is not installed"}
        return self.run(checks.default_stream, behind=[tool, *SANITIZED], **arguments)

    # --- (c) ---

    def sweep(self, about: dict[str, Any], files: dict[str, str]) -> dict[str, Outcome]:
        copy, pieces, ways = self.sizes.copy, list(self.sizes.pieces), list(self.sizes.ways)
        path = files[".flashpack"]
        found = {
            "copies": self.run(sweep.copies, size=copy, pieces=pieces, streams=ways),
            "NUMA node": self.run(sweep.nodes, size=copy, bus=about["bus"]),
            "bare readers": self.run(sweep.pipeline, path=path, pieces=pieces, readers=ways),
            "flashpack": self.run(sweep.engine, path=path, pieces=pieces, readers=ways),
        }
        for name, outcome in found.items():
            tell(name, outcome)
        return found

    # --- (d) ---

    def loads(self, files: dict[str, str]) -> dict[str, list[Outcome]]:
        """A checked load of each contender, then rounds of all of them in turn while there is time."""
        found: dict[str, list[Outcome]] = {}
        for contender in loads.CONTENDERS:
            found[contender.name] = [self.load(contender, files, "hot", check=True)]
            tell(contender.name, found[contender.name][0])
        sound = [it for it in loads.CONTENDERS if found[it.name][0]["outcome"] == "passed"]
        for _ in range(self.rounds):
            for state in ("hot", "cold"):
                for contender in sound:
                    if self.left() > found[contender.name][0]["seconds"]:
                        found[contender.name].append(self.load(contender, files, state, check=False))
        return found

    def load(self, contender: loads.Contender, files: dict[str, str], state: str, *, check: bool) -> Outcome:
        try:
            packages = self.packages_of(contender)
        except CannotRunError as why:
            return {"outcome": "not run", "why": str(why), "state": state}
        arguments = {
            "name": contender.name,
            "path": files[contender.suffix],
            "size": self.bytes,
            "check": check,
        }
        return {**self.run(loads.load, packages=packages, state=state, **arguments), "state": state}

    def packages_of(self, contender: loads.Contender) -> list[Path]:
        if contender.version is None:
            return self.packages
        versions = self.wheels.versions(contender.package)
        version = contender.version or (versions[-1] if versions else "of any version")
        return self.wheels.folders(contender.package, version)


def tell(name: str, outcome: Outcome) -> None:
    print(f"{name}: {report.said(outcome) or 'passed'}", file=sys.stderr, flush=True)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, required=True, help="flashpack's wheel, and those of peers")
    parser.add_argument("--out", type=Path, help="the JSON (default: hardware-DATE.json)")
    parser.add_argument(
        "--folder", type=Path, help="where files go, on the disk to measure (default: TMPDIR)"
    )
    parser.add_argument("--bytes", type=float, help="of the model that is loaded (default: 4e9)")
    parser.add_argument("--rounds", type=int, default=3, help="of loads beside each other")
    parser.add_argument("--minutes", type=float, default=10, help="what has not begun then is not run")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--checks", nargs="+", default=[], help="these alone, by name")
    parser.add_argument("--small", action="store_true", help="a few MiB: to see that all of it works")
    arguments = parser.parse_args(words)
    arguments.bytes = arguments.bytes or (12 * MIB if arguments.small else 4e9)
    return arguments


def run(kit: Kit, parts: Sequence[str]) -> report.Results:
    about = kit.about()
    results: report.Results = {
        "date": datetime.date.today().isoformat(),
        "command": sys.argv[1:],
        "machine": machine.describe(kit.folder),
        "gpu": about,
        "checks": kit.checks(about) if "checks" in parts else {},
        "link": kit.run(sweep.link, size=kit.sizes.copy),
        "sweep": {},
        "loads": {},
    }
    if "sweep" in parts:
        results["sweep"] = kit.sweep(about, kit.written("sweep", min(kit.bytes, SWEEP_BYTES)))
    if "loads" in parts:
        results["loads"] = kit.loads(kit.written("loads", kit.bytes))
    return results


def failures(results: report.Results) -> list[str]:
    """What failed of the package under test. What a peer cannot do here is told in its row alone."""
    outcomes = {**results["checks"], **results["sweep"], "link": results["link"]}
    failed = [name for name, outcome in outcomes.items() if outcome["outcome"] == "failed"]
    own = [contender.name for contender in loads.CONTENDERS if contender.version is None]
    runs = [(name, run) for name in own for run in results["loads"].get(name, [])]
    return failed + [name for name, run in runs if run["outcome"] == "failed"]


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="flashpack-hardware-") as folder:
        os.environ.update(environment([]))
        try:
            results = run(Kit(arguments, Path(folder)), arguments.parts)
        except CannotRunError as why:
            raise SystemExit(str(why)) from why
    out = arguments.out or Path(f"hardware-{results['date']}.json")
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(report.table(results))
    failed = failures(results)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
