"""Ctrl-C on the command line, whenever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import HELP, needed, run, saved
from flashpack import cli
from helpers import listing
from processes import TIMEOUT_SECONDS, environment, python


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "method"),
    [(cli.main, "parse_args"), (cli.main, "resolve_command"), (cli.metadata, "make_context")],
)
def test_an_interrupt_before_a_command_runs_ends_with_130(
    owner: object, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, interrupt)
    result = CliRunner().invoke(cli.main, ["metadata", "any"])
    assert result.exit_code == 130
    assert (result.stdout, result.stderr) == ("", "Interrupted\n")


SIGNALLED = """
import os, signal, sys
import flashpack.cli

signal.signal(signal.SIGINT, signal.default_int_handler)
flashpack.cli.metadata.parse_args = lambda *_: os.kill(os.getpid(), signal.SIGINT)
flashpack.cli.main(["metadata", "any"])
"""


def test_a_signal_ends_the_process_with_130() -> None:
    done = python("-c", SIGNALLED)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "Interrupted\n")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.safetensors")


@pytest.fixture
def packed(path: Path) -> Path:
    return saved(path)


# Waits inside the native call's worker thread until the main thread was interrupted, then lets it go on.
INTERRUPTED = """
import signal, sys, time
from flashpack._core import native as _native
from flashpack._core import progress as _progress
from flashpack.__main__ import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs us in the background ignores it
_progress.INLINE_BYTES = 0
call = _native.call


def waiting_call(op, progress=None, **fields):
    print("started", flush=True)
    while not progress[2]:
        time.sleep(0.01)
    return call(op, progress, **fields)


_native.call = waiting_call
main(sys.argv[1:])
"""


@pytest.mark.parametrize("old", [None, b"the old file"])
def test_an_interrupt_cancels_and_leaves_nothing(source: Path, path: Path, old: bytes | None) -> None:
    if old is not None:
        path.write_bytes(old)
    before = {name: (path.parent / name).read_bytes() for name in listing(path.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "convert", str(source), str(path)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
    assert process.returncode != 0
    assert "Success" not in out
    assert "Traceback" not in error
    assert {name: (path.parent / name).read_bytes() for name in listing(path.parent)} == before


@pytest.mark.parametrize("command", [c for c in HELP if c != "metadata"])
def test_an_interrupt_ends_with_130(command: str, monkeypatch: pytest.MonkeyPatch, packed: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flashpack._core.native.call", interrupt)
    result = run(command, packed, *needed(command, packed))
    assert result.exit_code == 130
    assert (result.stdout, result.stderr) == ("", "Interrupted\n")
