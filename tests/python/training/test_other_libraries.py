"""Libraries that are installed beside the tests' environment: what they build, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import library_programs
import other_libraries
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "open_clip", "lightning"])
def test_outputs_are_equal(library: str, tmp_path: Path) -> None:
    other_libraries.run(library, tmp_path)


def test_a_repository_of_torch_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    library_programs.torch_hub()
