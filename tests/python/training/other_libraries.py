"""Libraries that the tests' environment does not hold, as torchvision changes what others do where it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import beside
from processes import environment, python, succeed

# What these need of other packages is in the tests' environment; those that read pictures want torchvision.
REQUIREMENTS = [
    "timm==1.0.31",
    "open_clip_torch==3.3.0",
    "ftfy==6.3.1",
    "wcwidth==0.9.4",
    "pytorch-lightning==2.6.6",
    "lightning-utilities==0.15.3",
    "torchmetrics==1.9.0",
    "torchvision==0.29.2",
]


def run(program: str, folder: Path) -> None:
    """Run a function of `library_programs`, in a process that has these libraries, in `folder`."""
    libraries = beside.install("libraries", REQUIREMENTS)
    paths = os.pathsep.join([*(entry for entry in sys.path if entry), str(libraries)])
    code = f"import library_programs; library_programs.{program}()"
    env = environment(PYTHONPATH=paths, HF_HUB_OFFLINE="1", TORCH_HOME=str(folder))
    succeed(python("-W", "ignore", "-c", code, env=env, cwd=folder))
