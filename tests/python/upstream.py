"""flashpack 0.4.5 itself: installed from the package index into its own folder, run in its own processes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import environment, python, succeed

# `import flashpack` imports accelerate, which imports the rest; torch, numpy, tqdm, click, packaging and
# safetensors are those of the tests' own environment.
REQUIREMENTS = [
    "flashpack==0.4.5",
    "accelerate==1.15.0",
    "huggingface_hub==2.4.0",
    "psutil==7.2.2",
    "pyyaml==6.0.3",
]
# What pip says of a connection that failed, not of a package that is missing.
_NO_NETWORK = re.compile(
    r"after connection broken by|Max retries exceeded|name resolution|timed out", re.IGNORECASE
)


def install() -> Path:
    """The folder with 0.4.5, filled on first use and kept among the build outputs."""
    build = Path(__file__).parents[2] / "target"
    wanted = f"{REQUIREMENTS} {sys.version_info[:2]} {sys.platform}"
    folder = build / f"upstream-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    if not folder.exists():
        build.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=build, prefix="upstream-new-"))
        try:
            _fetch(fresh)
            fresh.rename(folder)
        except FileExistsError:  # another run was quicker
            pass
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _fetch(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--retries", "2", "--target", str(folder)]
    done = subprocess.run(
        [*command, *options, *REQUIREMENTS], capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode and _NO_NETWORK.search(done.stderr):
        pytest.skip(f"the package index is not reachable: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr


def run(folder: Path, code: str, *args: object) -> str:
    """Run `code` where `import flashpack` gives 0.4.5; its standard output."""
    paths = [str(folder), *(entry for entry in sys.path if entry)]
    check = "import flashpack; assert flashpack.__version__ == '0.4.5', flashpack.__file__\n"
    done = python("-c", check + code, *args, env=environment(PYTHONPATH=os.pathsep.join(paths)))
    return succeed(done)
