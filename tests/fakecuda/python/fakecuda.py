"""Starts programs under the CUDA emulator, and controls it from inside of them.

From the outside, where there is no emulator yet:

    done = fakecuda.call(load_twice, path, mode="strict", devices=2)  # a function of a module, in a process
    done.check()                                                      # of its own
    assert done.counters["async_copies"] > 0

    python tests/fakecuda/python/fakecuda.py --mode lazy:3 --devices 2 -- python -m pytest tests/python/cuda

From the inside:

    with fakecuda.faults("cuMemHostAlloc:1"), fakecuda.counting() as counters:
        load()
    assert counters["pageable_copies"] == 0

Modes, knobs, fault rules and counters are described in the README next to `build.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import warm

HERE = Path(__file__).resolve().parent
TIMEOUT_SECONDS = 180
Knob = float | str

# What a test of the loader should hold in; "lazy:SEED" takes any seed.
MODES = ("plain", "strict", "lazy:1", "lazy:2", "lazy:3")
STRICT: Mapping[str, Knob] = {"race": 1, "guard": 1, "strict_free": 1, "poison": 1}


# --- From the outside. ---------------------------------------------------------------------------


def knobs_of(mode: str) -> Mapping[str, Knob]:
    """The knobs that "plain", "strict", "lazy" or "lazy:SEED" stands for."""
    name, _, seed = mode.partition(":")
    known = {"plain": {}, "strict": STRICT, "lazy": {"lazy": 1, "seed": seed or 1}}
    if name not in known or (seed and (name != "lazy" or not seed.isdigit())):
        raise ValueError(f"no such mode: {mode!r} (plain, strict, lazy or lazy:SEED)")
    return known[name]


@functools.cache
def library() -> Path:
    """The emulator for the torch of this interpreter, built if need be: what has to be preloaded."""
    spec = importlib.util.spec_from_file_location("fakecuda_build", HERE.parent / "build.py")
    assert spec and spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    path: Path = build.build()
    return path


def environment(mode: str = "plain", devices: int = 1, **knobs: Knob) -> dict[str, str]:
    """The environment of a process under the emulator. Knobs are those of the README, in lower case."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FAKECUDA_", "CUDA_VISIBLE_"))}
    for name, value in {**knobs_of(mode), "devices": devices, **knobs}.items():
        env[f"FAKECUDA_{name.upper()}"] = str(value)
    folder = library().parent
    preload = [entry for entry in env.get("LD_PRELOAD", "").split() if "libcudart" not in entry]
    env["LD_PRELOAD"] = " ".join([*preload, str(library())])  # sanitizers want to be the first
    # For what opens libcuda.so by name; LD_PRELOAD alone only serves libcuda.so.1.
    env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(folder), env.get("LD_LIBRARY_PATH")]))
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    return env


@dataclass(frozen=True)
class Finished:
    """A process that ran under the emulator. `counters` are those at its end; empty if it crashed."""

    returncode: int
    stdout: str
    stderr: str
    counters: Counter[str]

    @property
    def crashed(self) -> bool:
        """It died of a signal, as a process does that the emulator or the kernel stopped."""
        return self.returncode < 0

    def check(self) -> Finished:
        """Raises AssertionError, with all that the process wrote, unless it succeeded."""
        assert self.returncode == 0, f"exit status {self.returncode}\n{self.stdout}\n{self.stderr}"
        return self


def run(command: list[str], mode: str = "plain", devices: int = 1, **knobs: Knob) -> Finished:
    """Runs a command under the emulator, whatever comes of it."""
    with _stats() as stats:
        env = environment(mode, devices, **{"stats": stats.name, **knobs})
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        return _finished(done, stats)


def _stats() -> IO[str]:
    return tempfile.NamedTemporaryFile("r", suffix=".json")


def _finished(done: subprocess.CompletedProcess[str], stats: IO[str]) -> Finished:
    # One line of each process that called CUDA. Peaks are added up as well: look at them for one process.
    counters: Counter[str] = Counter()
    for line in stats:
        counters.update(json.loads(line))
    return Finished(done.returncode, done.stdout, done.stderr, counters)


def call(
    function: Callable[..., object], *args: object, mode: str = "plain", devices: int = 1, **knobs: Knob
) -> Finished:
    """Calls a function of a module in a process of its own, under the emulator.

    The module is loaded there from its file, so the function must be found in it by name, and the arguments
    must be literals (numbers, strings, tuples, …).
    """
    code = function.__code__
    with _stats() as stats:
        env = environment(mode, devices, **{"stats": stats.name, **knobs})
        done = warm.call(code.co_filename, function.__name__, *args, env=env, timeout=TIMEOUT_SECONDS)
        return _finished(done, stats)


# --- From the inside. ----------------------------------------------------------------------------


@functools.cache
def _emulator() -> ctypes.CDLL:
    lib = _loaded_emulator()
    if lib is None:
        raise RuntimeError("this process does not run under the CUDA emulator: start it with fakecuda.run")
    return lib


def _loaded_emulator() -> ctypes.CDLL | None:
    try:
        lib = ctypes.CDLL("libcuda.so.1")  # the one that is loaded already
        lib.fakecuda_counter.restype = ctypes.c_uint64
    except (OSError, AttributeError):  # no driver, or a real one
        return None
    lib.fakecuda_set.argtypes = [ctypes.c_char_p, ctypes.c_double]
    lib.fakecuda_counters_json.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return lib


def active() -> bool:
    """Whether this process runs under the emulator."""
    return _loaded_emulator() is not None


def counter(name: str) -> int:
    """One counter: "h2d_bytes", "races", "calls.cudaMalloc", …"""
    value: int = _emulator().fakecuda_counter(name.encode())
    return value


def counters() -> Counter[str]:
    """All counters; those that are zero are left out, and read as zero."""
    size = _emulator().fakecuda_counters_json(None, 0) + 4096
    text = ctypes.create_string_buffer(size)
    _emulator().fakecuda_counters_json(text, size)
    return Counter(json.loads(text.value))


def reset() -> None:
    """Counters to zero; peaks restart from what is in use."""
    _emulator().fakecuda_reset()


@contextlib.contextmanager
def counting() -> Iterator[Counter[str]]:
    """Resets the counters, and fills in what the block did when it ends (also if it raises)."""
    result: Counter[str] = Counter()
    reset()
    try:
        yield result
    finally:
        result.update(counters())


def get_knob(name: str) -> float:
    """The present value of a knob."""
    value = ctypes.c_double()
    if _emulator().fakecuda_get(name.encode(), ctypes.byref(value)):
        raise ValueError(f"the emulator has no knob {name!r}")
    return value.value


def set_knob(name: str, value: float) -> None:
    """Changes a knob, for example `set_knob("bw_h2d", 25e9)`."""
    if _emulator().fakecuda_set(name.encode(), float(value)):
        raise ValueError(f"no such knob, or one that is fixed at start: {name!r}")


@contextlib.contextmanager
def knobs(**values: float) -> Iterator[None]:
    """Sets knobs for a block, and puts them back afterwards."""
    before = {name: get_knob(name) for name in values}
    try:
        for name, value in values.items():
            set_knob(name, value)
        yield
    finally:
        for name, value in before.items():
            set_knob(name, value)


@contextlib.contextmanager
def faults(rules: str) -> Iterator[None]:
    """Makes calls fail in a block ("cudaMalloc:3:oom"), counting them from here."""
    if _emulator().fakecuda_fail(rules.encode()):
        raise ValueError(f"the emulator does not understand the fault rules {rules!r}")
    try:
        yield
    finally:
        _emulator().fakecuda_fail(b"")


# --- The command line. ---------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs a command under the CUDA emulator.")
    parser.add_argument("--mode", default="plain", help="plain, strict, lazy or lazy:SEED")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--knob", action="append", default=[], metavar="NAME=VALUE", help="see the README")
    parser.add_argument("--call", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*")
    args = parser.parse_args()
    if args.call:
        warm.call_from_file(*args.call)
        return
    if not args.command:
        parser.error("which command?")
    env = environment(args.mode, args.devices, **dict(knob.split("=", 1) for knob in args.knob))
    os.execvpe(args.command[0], args.command, env)


if __name__ == "__main__":
    main()
