"""Makes the emulator's helper module importable, and the emulator itself present."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "fakecuda" / "python"))


@pytest.fixture(scope="session")
def emulator() -> Path:
    """The library to preload, built for the torch that is installed."""
    if torch.version.cuda is None:
        pytest.skip("torch is a CPU-only build: the emulator stands in for the libraries of a CUDA build")
    import fakecuda

    return fakecuda.library()


@pytest.fixture(scope="session")
def gpu() -> None:
    """A real GPU. Without one the test is skipped; with REQUIRE_GPU=1 in the environment it fails."""
    if not torch.cuda.is_available():
        if os.environ.get("REQUIRE_GPU") == "1":
            pytest.fail("REQUIRE_GPU=1, but torch finds no GPU")
        pytest.skip("there is no GPU (REQUIRE_GPU=1 makes that a failure)")
