"""The command line on terminals, pipes and streams that cannot say it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import flashpack
import pytest
import torch
from command_line import run, saved
from helpers import read_footer, read_payload, write_file
from processes import TIMEOUT_SECONDS, environment, python, succeed
from terminals import on_terminal


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.safetensors")


@pytest.fixture
def packed(path: Path) -> Path:
    return saved(path)


# Conversion stands still until the bar is up (or would be), so that nothing depends on time.
SLOW = """
import sys, threading, time
from flashpack._core import native as _native
from flashpack._core import progress as _progress
from flashpack.__main__ import main

_progress.INLINE_BYTES = 0
_progress._QUIET_SECONDS = 0.0
_progress._POLL_SECONDS = 0.01
shown = threading.Event()
call = _native.call


class Shown(_progress._Bar):
    def update(self, counter):
        super().update(counter)
        shown.set()


def slow_call(op, progress=None, **fields):
    if op in ("convert", "revert", "verify"):
        shown.wait(float(sys.argv[1]))
    return call(op, progress, **fields)


_progress._Bar, _native.call = Shown, slow_call
main(sys.argv[2:])
"""
BAR = re.compile(r"100%.*\|.*B/s")


@pytest.mark.parametrize(
    ("command", "label"), [("convert", "Converting"), ("revert", "Reverting"), ("verify", "Verifying")]
)
def test_progress_shows_on_a_terminal(source: Path, packed: Path, command: str, label: str) -> None:
    args = [source, packed.with_name("new")] if command == "convert" else [packed]
    if command == "revert":
        args.append(packed.with_name("new.safetensors"))
    code, shown = on_terminal("-c", SLOW, 60, command, *args)
    assert code == 0, shown
    assert label in shown
    assert BAR.search(shown), shown
    assert "Success: " in shown


def test_no_progress_into_a_pipe(source: Path) -> None:
    done = python("-c", SLOW, 0.3, "convert", source, source.with_name("new"))
    assert succeed(done).startswith("Success: ")
    assert done.stderr == ""


def test_verbose_shows_progress_anywhere(source: Path) -> None:
    done = python("-c", SLOW, 60, "convert", source, source.with_name("new"), "-v")
    assert succeed(done).startswith("Success: ")
    assert "Converting" in done.stderr


def test_quick_work_shows_no_progress_on_a_terminal(source: Path) -> None:
    code, shown = on_terminal("-m", "flashpack", "convert", source, source.with_name("new"))
    assert code == 0
    assert "Converting" not in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    "entry", [flashpack.commands.convert_to_flashpack, flashpack.commands.revert_from_flashpack]
)
def test_the_functions_behind_it_print_nothing(
    source: Path, packed: Path, capfd: pytest.CaptureFixture[str], entry: Callable[..., str]
) -> None:
    given = source if entry is flashpack.commands.convert_to_flashpack else packed
    assert entry(given, source.with_name("out.safetensors")) == str(source.with_name("out.safetensors"))
    assert capfd.readouterr() == ("", "")


def test_metadata_sends_no_control_sequences(path: Path) -> None:
    flashpack.save_file({"a\x1b[2J": torch.ones(1)}, path, metadata={"k\x1b]0;t\x07": "v\x9b"})
    footer = {**read_footer(path), "odd\x1b[31m": "\x1b[0m\x7f"}
    footer.pop("checksums")
    write_file(path, read_payload(path), footer)
    for flags in ([], ["-j"]):
        done = run("metadata", "-i", *flags, path)
        assert done.exit_code == 0, done.output
        assert not set("\x1b\x07\x9b") & set(done.output)
        assert "u001b" in done.output or "x1b" in done.output


def test_metadata_where_the_terminal_has_no_code_for_it(path: Path) -> None:
    flashpack.save_file({"层": torch.ones(1)}, path)
    shown = succeed(
        python("-m", "flashpack", "metadata", "-i", path, env=environment(PYTHONIOENCODING="ascii"))
    )
    assert "\\u5c42" in shown


@pytest.mark.parametrize("stdout", ["ascii", "closed"])
@pytest.mark.parametrize("command", ["convert", "verify", "metadata", "explain"])
def test_standard_output_that_cannot_say_it(command: str, stdout: str, source: Path) -> None:
    path = source.rename(source.with_name("modèle 模型.safetensors"))
    shell = [sys.executable, "-m", "flashpack", command, str(path)]
    if stdout == "closed":
        shell = ["/bin/sh", "-c", '"$@" >&-', "sh", *shell]
    done = subprocess.run(
        shell,
        env=environment(PYTHONIOENCODING="ascii"),
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Error" not in done.stderr
    assert command != "convert" or path.with_suffix(".flashpack").is_file()
