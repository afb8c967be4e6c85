"""The hardware kit, from wheels, on the emulator: where there is no GPU it must not rot."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import fakecuda
import flashpack
import pytest
import sysfs
from helpers import MIB
from processes import python, succeed

ROOT = Path(__file__).parents[3]
KIT = ROOT / "tests/hardware"
TIMEOUT_SECONDS = 900

pytestmark = pytest.mark.usefixtures("emulator")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheels of the package under test and of one peer, as they are installed."""
    folder = tmp_path_factory.mktemp("wheels")
    package = Path(flashpack.__file__).parent
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    pack(folder, "flashpack", version("flashpack"), {str(it.relative_to(package.parent)): it for it in files})
    peer = distribution("safetensors")
    names = [name for name in peer.files or [] if not name.parts[0].startswith("..")]
    pack(folder, "safetensors", peer.version, {str(name): Path(str(name.locate())) for name in names})
    return folder


def pack(folder: Path, name: str, release: str, files: dict[str, Path]) -> None:
    about = f"{name}-{release}.dist-info/METADATA"
    with zipfile.ZipFile(folder / f"{name}-{release}-py3-none-any.whl", "w") as wheel:
        for inside, path in files.items():
            if inside != about:
                wheel.write(path, inside)
        wheel.writestr(about, f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")


def run(wheels: Path, out: Path, *words: str, **knobs: float | str) -> subprocess.CompletedProcess[str]:
    """The kit on the emulator, with `words` besides those that make it small."""
    kit = [sys.executable, str(KIT), "--wheels", str(wheels), "--out", str(out), "--small", "--rounds", "1"]
    return subprocess.run(
        [*kit, "--folder", str(out.parent), "--minutes", "60", *words],
        env=fakecuda.environment(**knobs),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def outcomes(told: dict[str, Any]) -> dict[str, str]:
    return {name: outcome["outcome"] for name, outcome in told.items()}


# What the emulator lacks.
MISSING = {
    "second GPU": "there is one GPU",
    "green context's stream": "torch gives no green context",
    "compute-sanitizer": "the CUDA here is emulated",
}


@pytest.mark.slow
def test_all_of_it_runs_and_says_what_did_not(wheels: Path, tmp_path: Path) -> None:
    printed = succeed(run(wheels, tmp_path / "out.json"))
    told = json.loads((tmp_path / "out.json").read_text())

    assert told["gpu"]["emulated"] and "Emulated: no figure here is one of a GPU" in printed
    assert told["gpu"]["flashpack"] == version("flashpack")
    checks = told["checks"]
    for name, reason in MISSING.items():
        outcome = checks.pop(name)
        assert outcome["outcome"] == "not run" and reason in outcome["why"], (name, outcome)
    assert len(checks) == 12 and set(outcomes(checks).values()) == {"passed"}, checks
    assert "| capture in this thread | passed (CUDA runs no graphs here) |" in printed

    assert told["link"]["result"] > 0
    sweep = told["sweep"]
    assert outcomes(sweep) == dict.fromkeys(sweep, "passed") | {"NUMA node": "not run"}, sweep
    copies = sweep["copies"]["result"]
    assert len({(row["memory"], row["piece"], row["streams"]) for row in copies}) == len(copies) == 8
    assert len(sweep["bare readers"]["result"]) == 4
    assert {row["threads"] for row in sweep["flashpack"]["result"]} <= {1, 2}
    assert all(
        row["rate"] > 0 for name in ("copies", "bare readers", "flashpack") for row in sweep[name]["result"]
    )
    loads(told["loads"], printed)


def loads(told: dict[str, Any], printed: str) -> None:
    """Each contender with a wheel was compared, and then timed hot and cold; the others were not run."""
    peer = f"safetensors {version('safetensors')}"
    for name in ("flashpack, verified", "flashpack", "flashpack, of .safetensors", peer):
        runs = told.pop(name)
        assert [(run["outcome"], run["state"], run["result"]["checked"]) for run in runs] == [
            ("passed", "hot", True),
            ("passed", "hot", False),
            ("passed", "cold", False),
        ], name
        assert f"| {name} | {runs[1]['result']['wall_s']:.3f} " in printed
    assert len(told) == 4
    for name, (run,) in told.items():
        assert run["outcome"] == "not run" and run["why"].startswith("no wheel of "), name
        assert f"| {name} | not run: no wheel of " in printed


@pytest.mark.slow
def test_a_check_that_fails_fails_the_kit(wheels: Path, tmp_path: Path) -> None:
    words = ("--parts", "checks", "--checks", "default stream", "second GPU")
    done = run(wheels, tmp_path / "out.json", *words, fail="cuMemcpyHtoDAsync:1+")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "failed: default stream"
    told = json.loads((tmp_path / "out.json").read_text())
    assert outcomes(told["checks"]) == {"default stream": "failed", "second GPU": "not run"}
    assert "| default stream | failed: exit status 1: " in done.stdout


@pytest.mark.slow
def test_without_a_wheel_or_a_gpu_nothing_is_run(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "flashpack-0.5.0-py3-none-manylinux_2_28_riscv64.whl").touch()  # for another machine
    done = run(tmp_path, tmp_path / "out.json")
    assert done.returncode == 1
    assert "has 0 wheels of this flashpack" in done.stderr
    done = python(KIT, "--wheels", wheels, "--out", tmp_path / "out.json")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("finds no GPU")
    assert not (tmp_path / "out.json").exists()


def test_rates_are_told_for_each_numa_node(tmp_path: Path) -> None:
    """The emulator's first GPU has the bus id 0000:01:00.0."""
    behind = sysfs.with_nodes(tmp_path, dict(enumerate(sysfs.halves())), {"0000:01:00.0": 1})
    arguments = json.dumps({"device": "cuda:0", "size": 2 * MIB, "bus": "0000:01:00.0"})
    child = (KIT / "child.py", "hardware.sweep", "nodes", arguments)
    printed = succeed(python(*child, behind=behind, env=fakecuda.environment()))
    (told,) = [json.loads(line.partition(": ")[2]) for line in printed.splitlines()]
    assert [(row["node"], row["near"]) for row in told["result"]] == [(0, False), (1, True)]
    assert all(row["rate"] > 0 for row in told["result"])
