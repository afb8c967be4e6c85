"""On a machine with several NUMA nodes a load stays on one, and the calling thread is free again after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flashpack
import pytest
import sysfs
import torch
from helpers import MIB, flip_byte, noise, place_of
from processes import environment, python, succeed

LOAD = """
import flashpack, json, os, sys

def load(path, on=None, **options):
    before = os.sched_getaffinity(0)
    if on is not None:
        os.sched_setaffinity(0, on)
    allowed = os.sched_getaffinity(0)
    try:
        flashpack.load_file(path, **options)
        told = flashpack.last_load().node
    except flashpack.ChecksumError:
        told = "damaged"
    assert os.sched_getaffinity(0) == allowed
    os.sched_setaffinity(0, before)
    return told

first, second = json.loads(sys.argv[2])
path, damaged = sys.argv[3:5]
"""


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    """A file, and a damaged one: small, so that they are read on the calling thread."""
    paths = tmp_path / "sound.flashpack", tmp_path / "damaged.flashpack"
    for path in paths:
        flashpack.save_file({"a": noise(torch.uint8, (4 * MIB,), 1)}, path)
    flip_byte(paths[1], place_of(paths[1], "a")[0] + 5)
    return paths


def told(code: str, folder: Path, paths: tuple[Path, Path], several: bool = True, **variables: str) -> Any:
    """What `code` gives as `told`, where each half of the processors is a node."""
    halves = sysfs.halves()
    nodes = dict(enumerate(halves)) if several else {0: halves[0] | halves[1]}
    behind = sysfs.with_nodes(folder, nodes)
    program = LOAD + code + "\nprint(json.dumps(told))"
    arguments = ("", json.dumps([*map(sorted, halves)]), *paths)
    few = {"FLASHPACK_READ_THREADS": str(min(map(len, halves))), **variables}
    return json.loads(succeed(python("-c", program, *arguments, behind=behind, env=environment(**few))))


def test_readers_stay_on_the_node_of_their_caller(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    code = """
os.sched_setaffinity(0, second)
file = flashpack.open(path)  # here, whatever thread reads it
os.sched_setaffinity(0, first + second)
told = [load(path, first, eager=True), load(path, second, eager=True), load(damaged, eager=True)]
told += [load(path, second, eager=False), load(path, second)]
told += [load(path, eager=True) in (0, 1)]
"""
    assert told(code, tmp_path, paths) == [0, 1, "damaged", None, None, True]


def test_a_large_load_stays_where_the_file_was_opened(tmp_path: Path, path: Path) -> None:
    """The thread that Python starts for it may run anywhere."""
    flashpack.save_file({"a": torch.zeros(65 * MIB, dtype=torch.uint8)}, path)
    code = """
from flashpack._core import progress
run = progress.threading.Thread.run
def run_elsewhere(thread):
    os.sched_setaffinity(0, first)
    os.sched_setaffinity(0, first + second)
    run(thread)
progress.threading.Thread.run = run_elsewhere
os.sched_setaffinity(0, second)
flashpack.load_file(path, eager=True)
told = flashpack.last_load().node
"""
    assert told(code, tmp_path, (path, path)) == 1


def test_one_node_and_the_setting_leave_readers_alone(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    for name, several, variables in (("one", False, {}), ("off", True, {"FLASHPACK_NUMA": "0"})):
        (tmp_path / name).mkdir()
        assert (
            told("told = load(path, first, eager=True)", tmp_path / name, paths, several, **variables) is None
        )


def test_too_few_processors_are_no_reason_to_stay(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    """More readers would be busy than the node has processors."""
    many = {
        "FLASHPACK_READ_THREADS": str(sum(map(len, sysfs.halves()))),
        "FLASHPACK_READ_CHUNK_BYTES": "65536",
    }
    assert told("told = load(path, eager=True)", tmp_path, paths, **many) is None


def test_a_report_names_the_node(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    code = "load(path, second, eager=True)\ntold = str(flashpack.last_load())"
    assert " threads on NUMA node 1 " in told(code, tmp_path, paths)
