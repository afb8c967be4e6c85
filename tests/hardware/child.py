"""A function of the kit in a process of its own, with packages of its own: what came of it, as JSON."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MARK = "hardware kit: "
_NAMES_OF_OTHERS = ("FLASHPACK_", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_DEVICE_MAX_CONNECTIONS")

Outcome = dict[str, Any]


class CannotRunError(Exception):
    """This machine, or what is installed on it, lacks what the program needs."""


def call(
    function: Callable[..., Any],
    packages: Sequence[Path],
    *,
    env: Mapping[str, str] | None = None,
    behind: Sequence[str] = (),
    timeout: float = 240,
    **arguments: Any,
) -> Outcome:
    """`function(**arguments)` of a module of the kit: `outcome` (passed, failed, not run), `why`, `seconds`.

    What it returns is the `result`. `packages` are folders to import from, before all that is installed;
    `behind` is a command that runs the process.
    """
    command = [
        *behind,
        sys.executable,
        __file__,
        function.__module__,
        function.__name__,
        json.dumps(arguments),
    ]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            env={**environment(packages), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"outcome": "failed", "why": f"not over after {timeout:.0f} s", "seconds": timeout}
    seconds = round(time.perf_counter() - started, 3)
    return {**judged(done), "seconds": seconds}


def environment(packages: Sequence[Path]) -> dict[str, str]:
    """That of this process, but for what would change the loads or what is imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_NAMES_OF_OTHERS)}
    path = [*map(str, packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**clean, "PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"}


def judged(done: subprocess.CompletedProcess[str]) -> Outcome:
    told = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode == 0 and len(told) == 1:
        outcome: Outcome = json.loads(told[0])
        return outcome
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return {
        "outcome": "failed",
        "why": f"exit status {done.returncode}: {said[-1] if said else ''}",
        "said": said[-30:],
    }


def main() -> None:
    module, function, arguments = sys.argv[1:]
    sys.path += map(str, [ROOT / "benches/python", *tests()])
    try:
        result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
        outcome = {"outcome": "passed", "result": result}
    except CannotRunError as why:
        outcome = {"outcome": "not run", "why": str(why)}
    print(MARK + json.dumps(outcome), flush=True)


def tests() -> list[Path]:
    """Where the engine's own programs are, and what they import."""
    return [ROOT / "tests/python/cuda", ROOT / "tests/python/support", ROOT / "tests/fakecuda/python"]


if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)
    importlib.import_module("hardware.child").main()  # the module that the others import: one CannotRunError
