"""Calls of the system that fail, one after the other: see fault_programs.py for what each program checks."""

from __future__ import annotations

from pathlib import Path

import fault_programs
import faultio
import pytest
from processes import python, succeed


@pytest.mark.parametrize("program", fault_programs.PROGRAMS)
def test_faults(program: str, tmp_path: Path) -> None:
    told = succeed(python(fault_programs.__file__, tmp_path, program, env=faultio.preloaded()))
    name, count, _ = told.split()
    assert name == program
    assert int(count) > 0
