"""The engine's programs on a GPU, where there is one: `REQUIRE_GPU=1 make test` where there must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import engine
import pytest
import test_engine
import torch

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.mark.parametrize("program", [test_engine.loads, test_engine.from_threads])
def test_on_the_first(program: Callable[..., None], tmp_path: Path) -> None:
    engine.call_on_gpu(program, str(tmp_path), "cuda")


def test_on_the_second(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    engine.call_on_gpu(test_engine.loads, str(tmp_path), "cuda:1")
