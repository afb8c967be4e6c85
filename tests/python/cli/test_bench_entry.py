"""`flashpack bench`: it checks before it measures, and says which limit applies."""

from __future__ import annotations

import importlib
import os
import re
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import safetensors.torch
import torch
from command_line import assert_failure, run
from flashpack import bench
from flashpack._core import native
from flashpack.bench import loads as _bench_loads
from flashpack.bench import plot as _bench_plot
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
    ("entry", "options", "limits"),
    [
        (("flashpack", "bench"), [], {"page cache", "touching a mapping"}),
        (("flashpack.bench",), ["--cold"], {"disk"}),
    ],
    ids=["hot", "cold, as a module"],
)
def test_it_prints_limits_and_loads(
    packed: Path, entry: tuple[str, ...], options: list[str], limits: set[str]
) -> None:
    done = python("-m", *entry, packed, "--rounds", 2, *options)
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
    model = tmp_path / "model.bin"
    torch.save({"a": torch.zeros(3)}, model)
    assert_failure(run("bench", model), "flashpack convert")
    assert_failure(run("bench", tmp_path / "gone"), "No such file")
    flashpack.save_file({"none": torch.empty(0, 3)}, tmp_path / "none")
    assert_failure(run("bench", tmp_path / "none"), "nothing to measure")
    assert_failure(run("bench", "s3://bucket/model", "--cold"), "--cold is for files")
    flip_byte(packed, 1000)
    assert run("bench", packed, "--rounds", 1).stderr.startswith("Error: ")


@pytest.mark.parametrize("kind", ["safetensors", "shards", "compressed"])
def test_any_source_is_measured(kind: str, tmp_path: Path) -> None:
    tensors = {"a": noise(torch.float32, (300, 700)), "b": noise(torch.uint8, (400_000,))}
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    elif kind == "shards":
        flashpack.pack_to_file(tensors, tmp_path / "model.flashpack", max_shard_size="500KB")
    else:
        flashpack.pack_to_file(tensors, tmp_path / "model.flashpack", compress="fast")
    report = run("bench", tmp_path, "--rounds", 1).stdout
    verified = [] if kind == "safetensors" else ["eager, verified"]
    for load in ["mapped, all touched", "eager, unverified", *verified]:
        assert row(report, load)[4]
    assert ("eager, verified" in report) is (kind != "safetensors")


def test_a_picture_has_all_rates_and_the_time_line(
    packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a stand-in for matplotlib, which the tests do not install: what it is asked to draw."""
    drawn: dict[str, list[Any]] = defaultdict(list)

    class Drawing:
        def __getattr__(self, name: str) -> Callable[..., Drawing]:
            return lambda *args, **options: drawn[name].append((args, options)) or self

        def __getitem__(self, _: object) -> list[Drawing]:
            return [self, self]

    library = types.SimpleNamespace(Figure=lambda **_: Drawing())
    monkeypatch.setattr(_bench_plot, "require", lambda: library)
    result = run("bench", packed, "--rounds", 1, "--plot", tmp_path / "out.png")
    assert result.exit_code == 0
    assert drawn["savefig"] == [((str(tmp_path / "out.png"),), {})]
    (((names, rates), _), *stages) = drawn["barh"]
    assert names == ["copy in memory", "page cache", "page cache, same memory", "touching a mapping", *LOADS]
    assert all(rate > 0 for rate in rates)
    assert {"reading", "checksums"} <= {options["label"] for _, options in stages}
    for (threads, widths), options in stages:
        assert len(threads) == len(widths) == len(options["left"]) > 0
        assert all(number >= 0 for number in (*threads, *widths, *options["left"]))
    assert "FLASHPACK_TIMELINE" not in os.environ


def test_a_picture_without_matplotlib_says_what_to_install(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert_failure(run("bench", packed, "--plot", "out.png"), "pip install matplotlib")


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
