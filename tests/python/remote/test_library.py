"""The library of stores: opened for URLs alone, and missed where it is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import flashpack
import numpy as np
from faultstore import Store
from flashpack.numpy import save_file
from processes import environment, python, succeed

FILE = "libflashpack_remote.so"
# Loads each of the arguments, and prints whether the process has the library mapped after it.
LOADS = f"""
import sys
import flashpack.numpy
for path in sys.argv[1:]:
    flashpack.numpy.load_file(path)
    print("{FILE}" in open("/proc/self/maps").read())
"""


def save(folder: Path) -> Path:
    path = folder / "bucket" / "model.flashpack"
    path.parent.mkdir()
    save_file({"weight": np.arange(1000)}, path)
    return path


def test_it_is_opened_with_the_first_url(store: Store) -> None:
    path = save(store.folder)
    assert succeed(python("-c", LOADS, path, store.url("bucket/model.flashpack"))).split() == [
        "False",
        "True",
    ]


def test_without_it_urls_are_refused_and_files_are_not(store: Store, tmp_path: Path) -> None:
    path = save(store.folder)
    copy = tmp_path / "copy" / "flashpack"
    shutil.copytree(Path(flashpack.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__", FILE))
    env = environment(PYTHONPATH=str(copy.parent))
    done = python("-c", LOADS, path, store.url("bucket/model.flashpack"), env=env)
    assert done.stdout.split() == ["False"], done.stderr
    assert f"{copy}/_lib/{FILE}" in done.stderr
    assert "is missing" in done.stderr
    assert "install flashpack's wheel" in done.stderr
