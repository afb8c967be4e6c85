"""What the runs came to: a CSV of every run, and tables of medians with their ratios."""

from __future__ import annotations

import csv
import datetime
import statistics
from pathlib import Path
from typing import Any

import machine
import peers
from groups import GROUPS, Group
from limits import Limit

Row = dict[str, Any]

COLUMNS = (
    *("model", "bytes", "tensors", "group", "state", "contender", "limit", "round", "version", "checked"),
    *("wall_s", "cpu_s", "touched_wall_s", "touched_cpu_s", "peak_rss", "extra_rss", "gained_rss"),
    *("gained_anon", "touched_anon", "cached", "error"),
)


class Results:
    """Today's CSV: a row for each run; lines that start with # say where, when and how, with which releases.

    Runs of other models, groups and states of that day, machine and releases stay in it: all take hours.
    """

    def __init__(self, folder: Path, command: str, files: Path) -> None:
        import flashpack
        import torch

        pinned = [name for name, peer in peers.PEERS.items() if peer.requirements]
        releases = [f"flashpack {flashpack.__version__}", f"torch {torch.__version__}", *pinned]
        now = datetime.datetime.now(datetime.timezone.utc)
        self._about = {**machine.describe(files), "versions": "; ".join(releases)}
        self._runs = [("date", now.isoformat(timespec="seconds")), ("command", command)]
        self._path = folder / f"python-{now.date().isoformat()}.csv"
        self._earlier: list[Row] = []
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            about = [(name[2:], value) for name, _, value in (line.partition(": ") for line in lines)]
            if set(self._about.items()) <= set(about):
                self._earlier = read(self._path)
                self._runs = [each for each in about if each[0] in ("date", "command")] + self._runs

    def write(self, rows: list[Row]) -> Path:
        again = {_place(row) for row in rows}
        kept = [row for row in self._earlier if _place(row) not in again]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("w", newline="") as file:
            file.writelines(f"# {name}: {value}\n" for name, value in [*self._runs, *self._about.items()])
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            for row in [*kept, *rows]:
                table.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        return self._path


def _place(row: Row) -> tuple[Any, ...]:
    """What is timed side by side."""
    return row["model"], row["group"], row["state"]


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def median(rows: list[Row], column: str) -> float | None:
    values = [float(row[column]) for row in rows if row.get(column) not in (None, "")]
    return statistics.median(values) if values else None


def select(rows: list[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def show(rows: list[Row]) -> None:
    for model, group, state in dict.fromkeys((row["model"], row["group"], row["state"]) for row in rows):
        _show_table(select(rows, model=model, group=group, state=state), GROUPS[group], state)
    failed = dict.fromkeys(
        (row["model"], row["group"], row["contender"], row["error"]) for row in rows if row.get("error")
    )
    if failed:
        print("\nDid not run:")
    for model, group, name, error in failed:
        print(f"  {name} ({group}, {model}): {error}")


def _show_table(rows: list[Row], group: Group, state: str) -> None:
    size, rounds = int(rows[0]["bytes"]), len({row["round"] for row in rows})
    print(
        f"\n{rows[0]['model']}, {size / 1e6:.0f} MB in {rows[0]['tensors']} tensors, {state}: {group.title} "
        f"(medians of {rounds})"
    )
    headings = ("GB/s", 8), ("CPU s", 8), ("peak MiB", 10), ("extra MiB", 10), ("anon MiB", 10)
    headings = ("seconds", 9), ("min-max", 16), *headings, ("of bound", 10), ("x ours", 8)
    print(" " * 46 + "".join(f"{title:>{width}}" for title, width in headings))
    runs = {name: select(rows, contender=name) for name in dict.fromkeys(row["contender"] for row in rows)}
    times = {name: median(runs[name], _column(group, name, state)) for name in runs}
    bound, ours = _bound(times, group, state), times.get(peers.OURS) or times.get("flashpack convert")
    for name, seconds in times.items():
        if seconds is not None:
            print(_line(name, runs[name], _column(group, name, state), size, bound, ours))
    _warn_of_cache(rows, state)


def _warn_of_cache(rows: list[Row], state: str) -> None:
    """The machine may drop pages by itself, and keep those that somebody else maps."""
    known = [float(row["cached"]) for row in rows if row.get("cached") not in (None, "")]
    wrong = [part for part in known if (part < 0.99 if state == "hot" else part > 0.01)]
    if wrong:
        print(f"  {len(wrong)} of {len(known)} runs did not start {state}: see column `cached` of the CSV")


def _column(group: Group, name: str, state: str) -> str:
    is_limit = isinstance(group.find(state, name), Limit)
    return "touched_wall_s" if group.touched and not is_limit else "wall_s"


def _bound(times: dict[str, float | None], group: Group, state: str) -> float | None:
    if state in group.bound:
        return times.get(group.bound[state])
    known = [times.get(limit.name) for limit in group.limits[state]]
    return min((seconds for seconds in known if seconds), default=None)


def _line(name: str, runs: list[Row], column: str, size: int, bound: float | None, ours: float | None) -> str:
    walls = [float(row[column]) for row in runs if row.get(column) not in (None, "")]
    seconds = statistics.median(walls)
    cpu = median(runs, column.replace("wall", "cpu"))
    bytes_of = [median(runs, column) for column in ("peak_rss", "extra_rss", "touched_anon")]
    if bytes_of[-1] is None:
        bytes_of[-1] = median(runs, "gained_anon")
    spread = f"{min(walls):.4f}-{max(walls):.4f}"
    cells = [
        f"  {name:44}{seconds:9.4f}{spread:>16}",
        _cell(size / seconds / 1e9, 8, 2),
        _cell(cpu, 8, 3),
        *(_cell(value and value / 2**20, 10, 0) for value in bytes_of),
        _cell(bound and bound / seconds, 10, 2),
        _cell(ours and seconds / ours, 8, 2),
    ]
    return "".join(cells)


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
