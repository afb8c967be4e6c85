"""What every test module shares. Set before anything imports flashpack or a hub client."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
for _name in [*os.environ]:
    if _name.startswith("FLASHPACK_") or _name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        del os.environ[_name]

torch.set_num_threads(2)
sys.path[:0] = map(
    str, (Path(__file__).parent / "support", Path(__file__).parents[1] / "fakecuda" / "python")
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test may put its file; nothing else is in the folder."""
    return tmp_path / "model.flashpack"


@pytest.fixture(autouse=True, scope="module")
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2301)
        yield


@pytest.fixture(scope="session")
def emulator() -> Path:
    """The library to preload, built for the torch that is installed."""
    if torch.version.cuda is None:
        pytest.skip("torch is a CPU-only build: the emulator stands in for the libraries of a CUDA build")
    import fakecuda

    return fakecuda.library()
