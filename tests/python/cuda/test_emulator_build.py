"""Building and starting the emulator: nothing to do when up to date, one clear sentence when it cannot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import fakecuda
import pytest

FOLDER = Path(fakecuda.__file__).parents[1]
BUILD = FOLDER / "build.py"


def message_of(*command: object, **env: str) -> str:
    done = subprocess.run([*map(str, command)], env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_emulator_that_is_up_to_date_is_left_alone(emulator: Path) -> None:
    before = emulator.stat().st_mtime_ns
    done = subprocess.run([sys.executable, BUILD], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == emulator
    assert emulator.stat().st_mtime_ns == before


def test_without_a_compiler(emulator: Path, tmp_path: Path) -> None:  # noqa: ARG001 - needs a CUDA build of torch
    assert "g++ is not installed" in message_of(sys.executable, BUILD, "--out", tmp_path, PATH=str(tmp_path))


def test_without_torch(tmp_path: Path) -> None:
    assert "has no torch" in message_of(sys.executable, "-I", "-S", BUILD, "--out", tmp_path)


def test_unknown_modes_are_refused() -> None:
    for mode in ("fast", "plain:1", "lazy:x"):
        with pytest.raises(ValueError, match="no such mode"):
            fakecuda.knobs_of(mode)


def test_outside_of_the_emulator_its_control_raises() -> None:
    if fakecuda.active():
        pytest.skip("this process runs under the emulator")
    with pytest.raises(RuntimeError, match="does not run under the CUDA emulator"):
        fakecuda.counter("races")


def test_the_command_line_runs_a_command(emulator: Path) -> None:  # noqa: ARG001 - builds it
    program = (
        "import fakecuda; print(fakecuda.active(), fakecuda.get_knob('seed'), fakecuda.get_knob('bw_h2d'))"
    )
    arguments = ["--mode", "lazy:7", "--devices", "2", "--knob", "bw_h2d=4g", "--"]
    command = [sys.executable, fakecuda.__file__, *arguments, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "7.0", "4000000000.0"]


def test_the_readme_lists_the_driver_entry_points() -> None:
    """By their names in the source: cuda.h turns cuMemAlloc into cuMemAlloc_v2."""
    listed = re.search(r"<!-- driver -->(.*?)<!-- end -->", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert listed
    sources = "".join(path.read_text() for path in (FOLDER / "src").glob("driver_*.cpp"))
    defined = set(re.findall(r"^DRIVER_API (cu\w+)\(", sources, re.MULTILINE))
    assert set(re.findall(r"`(cu\w+?)(?:_v\d)?`", listed[1])) == {re.sub(r"_v\d$", "", n) for n in defined}
