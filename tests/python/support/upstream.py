"""flashpack 0.4.5 itself, run in its own processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import beside
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


def install() -> Path:
    """The folder with 0.4.5."""
    return beside.install("upstream", REQUIREMENTS)


def sources() -> Path:
    """The folder with the source distribution of 0.4.5: `src` and `tests`."""
    return beside.unpack("upstream-sources", "flashpack==0.4.5")


def run(folder: Path, code: str, *args: object) -> str:
    """Run `code` where `import flashpack` gives 0.4.5; its standard output."""
    paths = [str(folder), *(entry for entry in sys.path if entry)]
    check = "import flashpack; assert flashpack.__version__ == '0.4.5', flashpack.__file__\n"
    done = python("-c", check + code, *args, env=environment(PYTHONPATH=os.pathsep.join(paths)))
    return succeed(done)
