"""Releases of packages beside those of the tests' own environment: each set in a folder of its own."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

# What pip says of a connection that failed, not of a package that is missing.
_NO_NETWORK = re.compile(
    r"after connection broken by|Max retries exceeded|name resolution|timed out", re.IGNORECASE
)


def install(name: str, requirements: Sequence[str]) -> Path:
    """The folder with `requirements` alone, filled on first use and kept among the build outputs."""
    build = Path(__file__).parents[2] / "target"
    wanted = f"{list(requirements)} {sys.version_info[:2]} {sys.platform}"
    folder = build / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    if not folder.exists():
        build.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=build, prefix=f"{name}-new-"))
        try:
            _fetch(fresh, requirements)
            fresh.rename(folder)
        except FileExistsError:  # another run was quicker
            pass
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _fetch(folder: Path, requirements: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--retries", "2", "--target", str(folder)]
    done = subprocess.run(
        [*command, *options, *requirements], capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode and _NO_NETWORK.search(done.stderr):
        pytest.skip(f"the package index is not reachable: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr
