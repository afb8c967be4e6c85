"""Releases of packages beside those of the tests' own environment: each set in a folder of its own."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

# What pip says of a connection that failed, not of a package that is missing.
_NO_NETWORK = re.compile(
    r"after connection broken by|Max retries exceeded|name resolution|timed out", re.IGNORECASE
)


def install(name: str, requirements: Sequence[str]) -> Path:
    """The folder with `requirements` alone, filled on first use and kept among the build outputs."""

    def fill(folder: Path) -> None:
        _pip("install", "--only-binary", ":all:", "--target", folder, *requirements)

    return _kept(name, requirements, fill)


def unpack(name: str, requirement: str) -> Path:
    """The folder with the source distribution of `requirement`, as `install` keeps it."""

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as fetched:
            _pip("download", "--no-binary", ":all:", "--dest", fetched, requirement)
            (archive,) = Path(fetched).iterdir()
            shutil.unpack_archive(archive, folder)

    (sources,) = _kept(name, [requirement], fill).iterdir()
    return sources


def packages_of_node(name: str, requirement: str) -> Path:
    """The folder with this package of npm and what it needs, as `install` keeps it."""

    def fill(folder: Path) -> None:
        command = [
            "npm",
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--prefix",
            str(folder),
            requirement,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr

    return _kept(name, [requirement], fill)


def _kept(name: str, requirements: Sequence[str], fill: Callable[[Path], None]) -> Path:
    build = Path(__file__).parents[3] / "target"
    wanted = f"{list(requirements)} {sys.version_info[:2]} {sys.platform}"
    folder = build / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    if not folder.exists():
        build.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=build, prefix=f"{name}-new-"))
        try:
            fill(fresh)
            fresh.rename(folder)
        except FileExistsError:  # another run was quicker
            pass
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _pip(command: str, *arguments: object) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--retries", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *options, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode and _NO_NETWORK.search(done.stderr):
        pytest.skip(f"the package index is not reachable: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr
