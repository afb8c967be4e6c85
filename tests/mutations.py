"""Proves that the tests of the CUDA engine find the mistakes they are there for: `make mutations`.

Each mutation takes one precaution out of a copy of the crate, under target/mutations; the copy is built, and
the engine's tests run with it under the emulator until one fails. A mutation that no test finds is a failure,
and so is a test that fails without any. Takes some minutes.

    python tests/mutations.py            # all of them
    python tests/mutations.py join drain # some
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "target" / "mutations"
CRATE = WORK / "crate"
LIBRARY = CRATE / "python" / "flashpack" / "_lib" / "libflashpack_torch.so"
FILES = ["Cargo.toml", "Cargo.lock", "build.rs", "setup.py"]
FOLDERS = ["src", "cpp", "benches", "python"]
TESTS = [
    f"tests/python/cuda/test_{name}.py" for name in ("saving", "engine_streams", "engine", "engine_faults")
]


@dataclass(frozen=True)
class Mutation:
    """Replacements (file, old, new), each of a text that must occur exactly once."""

    name: str
    what: str
    edits: tuple[tuple[str, str, str], ...]


MUTATIONS = [
    Mutation(
        "reuse",
        "a buffer is filled again, or its bytes are used, before its copy is done",
        (("lane.rs", "oldest.wait_idle()?;", ""),),
    ),
    Mutation(
        "allocation",
        "copies do not wait for what the caller's stream has queued",
        (("cuda/mod.rs", "self.caller.hold(stream.handle)?;\n        Ok(stream)", "Ok(stream)"),),
    ),
    Mutation(
        "join",
        "the caller's stream does not wait for the last copies",
        (("cuda/mod.rs", "self.caller.wait_for(&stream.end)", "Ok(())"),),
    ),
    Mutation(
        "thread",
        "readers touch the caller's stream, which may be another one in their threads",
        (
            ("transfer.rs", "lane.finish();", "device.join()?;\n        lane.finish();"),
            ("transfer.rs", "outcome.and(device.join())", "outcome"),
        ),
    ),
    Mutation(
        "current",
        "the caller's default stream is taken for that of another context",
        (("cuda/caller.rs", "let context = device.context_here()?;\n", "let context = device.context;\n"),),
    ),
    Mutation(
        "bound",
        "long loads leave the thread whose stream it is",
        (
            (
                "cuda/caller.rs",
                "Ok(handle.is_of_thread() || (handle.is_of_context() && context != device.primary.context))",
                "Ok(false)",
            ),
        ),
    ),
    Mutation(
        "captured",
        "a stream that is being captured is used",
        (("cuda/handles.rs", "if status == NOT_CAPTURING {", "if status != c_uint::MAX {"),),
    ),
    Mutation(
        "relaxed",
        "calls break what another thread captures",
        (("cuda/handles.rs", "before: Self::exchange(RELAXED)?", "before: Self::exchange(NOT_CAPTURING)?"),),
    ),
    Mutation(
        "restored",
        "the calling thread's capture mode stays relaxed",
        (("cuda/handles.rs", "let _ = Self::exchange(self.before);", "let _ = self.before;"),),
    ),
    Mutation(
        "kept",
        "each lane makes a stream of its own",
        (
            (
                "cuda/mod.rs",
                "let stream = self.device.stream(number)?;\n        self.used",
                "let stream = Arc::new(Stream::new(self.device.primary.context)?);\n        self.used",
            ),
        ),
    ),
    Mutation(
        "events",
        "each use of a buffer makes an event",
        (("cuda/pinned.rs", "is_none_or(|event| event.context != stream.context)", "is_none_or(|_| true)"),),
    ),
    Mutation(
        "settle",
        "a buffer whose event tells nothing stays pinned for good",
        (("cuda/pinned.rs", "self.wait_idle().or_else(|_| stream.synchronize())", "self.wait_idle()"),),
    ),
    Mutation(
        "fetcher",
        "each tensor of a save is waited for",
        (("fetch.rs", "device.join()\n", "device.join()?;\n        self.finish(sink)\n"),),
    ),
    Mutation(
        "idle",
        "the pool hands out buffers whose copies still run",
        (("cuda/pinned.rs", "self.awaited().map_or(Ok(true), Event::is_reached)?", "true"),),
    ),
    Mutation(
        "free",
        "pinned memory is freed while copies still run",
        (
            (
                "cuda/pinned.rs",
                "if self.settle().and_then(|()| self.unregister())",
                "self.busy = None;\n        if self.unregister()",
            ),
        ),
    ),
    Mutation(
        "context",
        "pinned memory is freed on a thread that is in no context",
        (
            (
                "cuda/pinned.rs",
                "let _entered = Entered::new(context)?;\n        // SAFETY: locked by",
                "let _ = context;\n        // SAFETY: locked by",
            ),
        ),
    ),
    Mutation(
        "drain",
        "a load that fails lets buffers and memory go while copies still run",
        (("lane.rs", "&& self.device.drain(&self.stream).is_err()", "&& false"),),
    ),
    Mutation(
        "failed",
        "a buffer whose copies failed stays in the pool",
        (("pool.rs", "idle => Some((position, idle.is_ok())),", "idle => Some((position, idle.unwrap())),"),),
    ),
    Mutation(
        "lease",
        "the pool counts a buffer that could not be made",
        (("pool.rs", "None => state.total -= self.bytes,", "None => {}"),),
    ),
    Mutation(
        "fork",
        "a child made by fork has its parent's pool",
        (("cuda/kept.rs", "&& kept.process == process::id()", "&& kept.process != 0"),),
    ),
    Mutation(
        "pageable",
        "any error of pinning stands for memory that cannot be pinned",
        (
            (
                "cuda/handles.rs",
                "if REFUSED.contains(&status) {",
                "if status != 0 {",
            ),
        ),
    ),
    Mutation(
        "again",
        "memory that could not be pinned stays in the pool",
        (("pool.rs", "self.buffer.take_if(|buffer| fits && buffer.is_reusable())", "self.buffer.take()"),),
    ),
]


def main(names: list[str]) -> int:
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    if unknown := set(names) - {mutation.name for mutation in MUTATIONS}:
        sys.exit(f"no such mutation: {', '.join(sorted(unknown))}")
    copy_crate()
    right = True
    print(f"{'mutation':<12}{'verdict':<10}{'seconds':>8}  found by", flush=True)
    for mutation in [Mutation("none", "", ()), *chosen]:
        started = time.monotonic()
        with_edits(mutation)
        failed = first_failure()
        good = bool(failed) == bool(mutation.edits)
        verdict = ("found" if failed else "MISSED") if mutation.edits else ("FAILED" if failed else "passes")
        note = f"{failed}  ({mutation.what})" if mutation.edits else failed
        print(f"{mutation.name:<12}{verdict:<10}{time.monotonic() - started:8.0f}  {note}", flush=True)
        right &= good
        if not mutation.edits and failed:
            print((WORK / "pytest.log").read_text())
            break  # nothing can be proven with tests that fail anyway
    return 0 if right else 1


def copy_crate() -> None:
    """A fresh copy of what is built; new dates make cargo look at all of it."""
    shutil.rmtree(CRATE, ignore_errors=True)
    CRATE.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(ROOT / name, CRATE / name)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", LIBRARY.name)
        shutil.copytree(ROOT / name, CRATE / name, ignore=ignored, copy_function=shutil.copyfile)


def with_edits(mutation: Mutation) -> None:
    """Builds the copy with the edits of `mutation` and no others."""
    device = ROOT / "src" / "device"
    for file in sorted(str(path.relative_to(device)) for path in device.rglob("*.rs")):
        text = (device / file).read_text()
        for _, old, new in (edit for edit in mutation.edits if edit[0] == file):
            if text.count(old) != 1:
                sys.exit(
                    f"mutation {mutation.name!r}: {old!r} is {text.count(old)} times in {file}, not once"
                )
            text = text.replace(old, new)
        (CRATE / "src" / "device" / file).write_text(text)
    build = "import setup, shutil, sys; shutil.copyfile(setup.cargo_build('torch'), sys.argv[1])"
    run([sys.executable, "-c", build, str(LIBRARY)], CRATE, CARGO_TARGET_DIR=str(WORK / "target"))


def first_failure() -> str:
    """The first test that fails with the copy; empty if all pass."""
    used = "from flashpack._core import ops; print(ops.library_path())"
    path = {"PYTHONPATH": str(CRATE / "python")}
    library = run([sys.executable, "-c", used], ROOT, **path).stdout.strip()
    if Path(library) != LIBRARY:
        sys.exit(f"the tests would use {library}, not {LIBRARY}")
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
    done = run(pytest, ROOT, status=(0, 1), **path)
    (WORK / "pytest.log").write_text(done.stdout)
    if done.returncode == 0:
        return ""
    return next(iter(re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", done.stdout, re.MULTILINE)), done.stdout)


def run(
    command: list[str], folder: Path, status: tuple[int, ...] = (0,), **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode not in status:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
