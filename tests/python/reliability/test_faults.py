"""Calls of the system that fail, one after the other: see fault_programs.py for what each program checks."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import crash_points
import fault_programs
import faultio
import flashpack
import pytest
import torch
import torn_reads
from libraries import in_processes_of
from processes import python, succeed


@pytest.mark.parametrize("program", fault_programs.PROGRAMS)
def test_faults(program: str, tmp_path: Path) -> None:
    told = succeed(python(fault_programs.__file__, tmp_path, program, env=faultio.preloaded()))
    name, count, _ = told.split()
    assert name == program
    assert int(count) > 0


TRUNCATED = """
import os, sys
import flashpack
tensors = flashpack.load_file(sys.argv[1], eager=sys.argv[2] == "eager")
os.truncate(sys.argv[1], 4096)
assert tensors["a"].sum().item() == 1 << 20
"""


def test_truncation_under_a_mapping_is_fatal_and_an_eager_load_is_safe(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(1 << 20)}, path)
    whole = path.read_bytes()
    assert python("-c", TRUNCATED, path, "lazy").returncode == -signal.SIGBUS
    path.write_bytes(whole)
    succeed(python("-c", TRUNCATED, path, "eager"))


@pytest.mark.parametrize("options", [(), ("--shards",)], ids=["a file", "shards"])
def test_killed_savers_leave_whole_files(options: tuple[str, ...]) -> None:
    told = in_processes_of("flashpack", crash_points.__file__, "--kills", 20, "--mib", 16, *options)
    assert " 0 torn" in told, told
    assert " 0 files left" in told, told


def test_readers_of_files_that_are_replaced_see_one_version() -> None:
    told = in_processes_of("flashpack", torn_reads.__file__, "--readers", 8, "--seconds", 3)
    outcomes = [line.partition(": ")[2] for line in told.splitlines()]
    assert len(outcomes) == 2
    assert all(re.fullmatch(r"\d+ whole", outcome) for outcome in outcomes), told
