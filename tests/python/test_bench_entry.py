"""`python -m flashpack.bench`: it checks before it measures, and says which limit applies."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import flashpack
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from flashpack import bench
from flashpack._core import native
from flashpack.bench import loads as _bench_loads
from helpers import MIB, flip_byte, noise
from processes import python, succeed

LOADS = ["mapped, all touched", "eager, unverified", "eager, verified"]


@pytest.fixture
def packed(path: Path) -> Path:
    tensors = {f"t{dtype}": noise(dtype, (300, 700)) for dtype in (torch.float32, torch.bfloat16, torch.bool)}
    flashpack.save_file({**tensors, "scalar": torch.tensor(3), "empty": torch.empty(0, 2)}, path)
    return path


def row(report: str, name: str) -> re.Match[str]:
    found = re.search(
        rf"^{re.escape(name)} +(\S+ \S+/s)(?: +(\S+) +(\S+) x the limit \((.*)\))?$", report, re.M
    )
    assert found, f"{name} in\n{report}"
    return found


@pytest.mark.parametrize(
    ("options", "limits"),
    [([], {"page cache", "touching a mapping"}), (["--cold"], {"disk"})],
    ids=["hot", "cold"],
)
def test_it_prints_limits_and_loads(packed: Path, options: list[str], limits: set[str]) -> None:
    done = python("-m", "flashpack.bench", packed, "--rounds", 2, *options)
    report = succeed(done)
    for limit in ("copy in memory", *limits):
        row(report, limit)
    assert {row(report, load)[4] for load in LOADS} == limits
    assert all(float(row(report, load)[3]) > 0 for load in LOADS)
    assert report.index("file's own bytes") < report.index("copy in memory")
    assert "the limit was: " in report


def test_wrong_bytes_are_told_before_anything_is_measured(packed: Path) -> None:
    honest = _bench_loads.load_file

    def wrong(path: str, device: str = "cpu", **options: bool) -> dict[str, torch.Tensor]:
        loaded = honest(path, device, **options)
        if options.get("eager"):
            loaded["scalar"] += 1
        return loaded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_bench_loads, "load_file", wrong)
        with pytest.raises(RuntimeError, match=r"eager, unverified: 'scalar' has other bytes"):
            list(bench.bench(str(packed)))


def test_files_that_cannot_be_measured_are_one_sentence(packed: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3)}, model)
    done = CliRunner().invoke(bench.main, [str(model)])
    assert done.exit_code == 1
    assert f"flashpack convert {model}" in done.output
    done = CliRunner().invoke(bench.main, [str(tmp_path / "gone")])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    flip_byte(packed, 1000)
    done = CliRunner().invoke(bench.main, [str(packed), "--rounds", "1"])
    assert done.exit_code == 1
    assert "Error: " in done.output


def test_raw_reads_of_a_file_that_has_become_shorter_fail(path: Path) -> None:
    path.write_bytes(bytes(MIB))
    measure = {"path": str(path), "threads": 2}
    assert native.call("measure", bytes=MIB, **measure) > 0
    with pytest.raises(OSError, match="truncated while it was read"):
        native.call("measure", bytes=MIB + 1, **measure)
    assert native.call("measure", bytes=MIB, threads=1) > 0, "without a file: copies in memory"


def test_the_module_imports_no_torch() -> None:
    code = "import sys, flashpack.bench; print('torch' in sys.modules)"
    assert succeed(python("-c", code)).strip() == "False"
    assert importlib.import_module("flashpack.bench") is bench
