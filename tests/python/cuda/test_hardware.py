"""The hardware kit's checks on a GPU, where there is one: `REQUIRE_GPU=1 make test` where there must be."""

from __future__ import annotations

import sys
from pathlib import Path

import flashpack
import pytest
from helpers import MIB

sys.path.append(str(Path(__file__).parents[2]))

from hardware.checks import CHECKS, Check
from hardware.child import call

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_on_a_gpu(check: Check, tmp_path: Path) -> None:
    packages = [Path(flashpack.__file__).parents[1]]
    options = {"env": check.env, "timeout": check.timeout}
    done = call(check.program, packages, **options, folder=str(tmp_path), device="cuda:0", size=64 * MIB)
    if done["outcome"] == "not run":
        pytest.skip(done["why"])
    assert done["outcome"] == "passed", done
