"""The integrations' tests once more, with the oldest releases that the extras of pyproject.toml allow."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import beside
import pytest
from processes import environment, python

pytestmark = pytest.mark.slow

RELEASES = [
    "transformers==5.10.4",
    "diffusers==0.41.0",
    # What those two need; the rest is the tests' own.
    *("huggingface_hub==1.33.0", "httpx==0.28.1", "httpcore==1.0.9", "tokenizers==0.22.2"),
]


def test_older_releases() -> None:
    folder = beside.install("older", RELEASES)
    env = environment(PYTHONPATH=os.pathsep.join([str(folder), *filter(None, sys.path)]))
    versions = "import diffusers, transformers as t; print(diffusers.__version__, t.__version__)"
    assert python("-c", versions, env=env).stdout.split() == ["0.41.0", "5.10.4"]
    here = Path(__file__)
    # 0.4.5's own tests say nothing about releases.
    ignored = [f"--ignore={path}" for path in (here, here.with_name("test_upstream.py"))]
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *ignored, here.parent]
    done = python(*command, env=env, timeout=3600)  # it is all the tests of this folder
    assert done.returncode == 0, done.stdout[-20_000:]
    assert re.search(r"\d+ passed", done.stdout), done.stdout
