"""What only the tests of the CUDA engine need."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def gpu() -> None:
    """A real GPU. Without one the test is skipped; with REQUIRE_GPU=1 in the environment it fails."""
    if not torch.cuda.is_available():
        if os.environ.get("REQUIRE_GPU") == "1":
            pytest.fail("REQUIRE_GPU=1, but torch finds no GPU")
        pytest.skip("there is no GPU (REQUIRE_GPU=1 makes that a failure)")
