"""The benchmark of whole loads, at a tiny size: it checks, runs and writes down everything. No times."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import slowfs
from helpers import flip_byte
from processes import python, succeed

BENCHES = Path(__file__).parents[3] / "benches/python"
MODEL, SCALE = "many", 0.01


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that runs it all."""
    monkeypatch.syspath_prepend(str(BENCHES))
    return __import__("run")


@pytest.mark.slow
def test_every_run_has_its_row_and_was_checked_before(bench: Any, tmp_path: Path) -> None:
    wanted = ["--quick", "--rounds", "1", "--models", MODEL, "--scale", str(SCALE), "--out", str(tmp_path)]
    wanted += ["--groups", "lazy", "save", "--states", "hot", "cold", "--peers", "flashpack"]
    done = python(BENCHES / "run.py", *wanted)
    printed = succeed(done)

    (path,) = tmp_path.glob("*.csv")
    about, rows = read(path)
    cases = list(bench.selected(bench.parse(wanted)))
    expected = [(case.group, case.state, case.name) for case in cases]
    assert {case.group for case in cases} == {"lazy", "save"}
    assert sorted((row["group"], row["state"], row["contender"]) for row in rows) == sorted(expected)
    for row in rows:
        assert (row["error"], row["checked"], row["bytes"], row["tensors"]) == ("", "1", "102400", "50"), row
        assert float(row["wall_s"]) > 0, row
        assert bool(row["touched_wall_s"]) == (row["group"] == "lazy" and row["limit"] == "0"), row
    assert {"date", "command", "cpu", "cores", "memory", "kernel", "disk", "versions"} <= set(about)
    assert all(case.name in printed for case in cases)
    assert done.stderr.index("checking the bytes of flashpack") < done.stderr.index("timing")


def test_wrong_bytes_are_told_and_never_timed(bench: Any, tmp_path: Path) -> None:
    folder = bench.models.build(MODEL, SCALE, tmp_path)
    flip_byte(folder / "model.flashpack", 3000)
    runs = bench.Bench(SCALE, {MODEL: folder})
    damaged = bench.Case(MODEL, "lazy", "hot", "flashpack, eager=False", "flashpack", limit=False)
    (checked,) = runs.check([damaged])
    ((timed,),) = runs.time([damaged], 1)
    for row in (checked, timed):
        assert row["error"] == "ValueError: the bytes of layers.1.weight are not those that were written"
        assert row["checked"] == 0
        assert "wall_s" not in row


def test_a_model_is_built_again_when_its_recipe_changes(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.models.build(MODEL, SCALE, tmp_path)
    inode = (first / "model.flashpack").stat().st_ino
    assert bench.models.build(MODEL, SCALE, tmp_path) == first
    assert (first / "model.flashpack").stat().st_ino == inode

    spec = bench.models.Spec("other", "int8", (5,))
    monkeypatch.setitem(bench.models.MODELS, MODEL, lambda _scale: iter([spec]))
    second = bench.models.build(MODEL, SCALE, tmp_path)
    assert list(tmp_path.iterdir()) == [second]
    assert second != first


@pytest.mark.slow
@pytest.mark.skipif(bool(slowfs.missing()), reason=slowfs.missing())
def test_loads_from_slow_storage_are_checked_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHES))
    bench: Any = __import__("slow_storage")
    ours = [bench.RAW[0], bench.EAGER, bench.MAPPED, bench.SHARDS]
    done = python(BENCHES / "slow_storage.py", "--quick", "--rounds", "1", "--only", *ours)
    printed = succeed(done)
    for name in ours:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"  {name:40}")]
        seconds, _, _, requests, *_ = line.removeprefix(f"  {name}").split()
        assert float(seconds) > 0
        assert int(requests) > 0
        assert done.stderr.index(f"{name}, checked") < done.stderr.index(f"{name}, round 0")


@pytest.mark.slow
def test_loads_from_object_storage_are_checked_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHES))
    bench: Any = __import__("remote_storage")
    ours = [bench.RAW[0], bench.VERIFIED, "unconverted safetensors", "by http://"]
    done = python(BENCHES / "remote_storage.py", "--quick", "--only", *ours)
    printed = succeed(done)
    for name in ours:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"  {name:40}")]
        seconds, _, _, requests, *_ = line.removeprefix(f"  {name}").split()
        assert float(seconds) > 0
        assert int(requests) > 0


def test_commands_that_look_are_checked_and_timed() -> None:
    printed = succeed(python(BENCHES / "inspection.py", "--tensors", "60", "--mb", "1", "--rounds", "1"))
    timed = [line.split("  median ")[0].strip() for line in printed.splitlines() if " median " in line]
    assert timed == [
        *("flashpack ls, piped", "flashpack ls, first screen", "flashpack ls, all to the terminal"),
        *("(start of flashpack)", "safetensors, names"),
        *("flashpack diff, all values differ", "flashpack diff, equal"),
        *("(both read into fresh memory)", "(both read into the cache)"),
    ]


def read(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What the file says of the run, and its rows."""
    lines = path.read_text().splitlines()
    about = [line[2:].partition(": ") for line in lines if line.startswith("# ")]
    rows = csv.DictReader(line for line in lines if not line.startswith("# "))
    return {name: value for name, _, value in about}, list(rows)
