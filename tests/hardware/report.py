"""The results as a table of docs/benchmarks.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

Results = dict[str, Any]


def table(results: Results) -> str:
    """What was run and what came of it, in Markdown."""
    return "\n\n".join([heading(results), loads(results), ways(results), checks(results)]) + "\n"


def heading(results: Results) -> str:
    about, machine = results["gpu"], results["machine"]
    emulated = "**Emulated: no figure here is one of a GPU.** " if about.get("emulated") else ""
    return (
        f"{emulated}Of {results['date']}: {about['gpu']}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory']}, {machine['disk']}, Linux {machine['kernel']}, torch {about['torch']}, "
        f"flashpack {about['flashpack']}. Pinned memory to the GPU, one large copy: {rate(results['link'])}."
    )


def rate(outcome: Results) -> str:
    return said(outcome) or f"{outcome['result'] / 1e9:.1f} GB/s"


def said(outcome: Results) -> str:
    """Why there is nothing to show, if so."""
    return "" if outcome["outcome"] == "passed" else f"{outcome['outcome']}: {outcome['why']}"


def loads(results: Results) -> str:
    """Medians of seconds, and the part of the link's rate that they come to."""
    lines = [
        "| to the GPU | hot, s | of the link | cold, s | of the link |",
        "| --- | --- | --- | --- | --- |",
    ]
    limit = results["link"].get("result")
    for name, runs in results["loads"].items():
        failed = [said(run) for run in runs if said(run)]
        cells = [failed[0], "", "", ""] if failed else cells_of(runs, limit)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cells_of(runs: Iterable[Results], limit: float | None) -> list[str]:
    cells = []
    for state in ("hot", "cold"):
        here = [run["result"] for run in runs if run["state"] == state and not run["result"]["checked"]]
        walls = [run["wall_s"] for run in here]
        if not walls:
            cells += ["not run: no time was left", ""]
            continue
        median = statistics.median(walls)
        cells.append(f"{median:.3f} ({min(walls):.3f}-{max(walls):.3f}, n={len(walls)})")
        cells.append(f"{here[0]['bytes'] / median / limit:.2f}" if limit else "")
    return cells


def ways(results: Results) -> str:
    """The best of each sweep."""
    lines = ["| sweep | best | GB/s |", "| --- | --- | --- |"]
    for name, outcome in results["sweep"].items():
        if said(outcome):
            lines.append(f"| {name} | {said(outcome)} | |")
            continue
        rows = outcome["result"]
        groups = dict.fromkeys((row.get("memory"), row.get("verified"), row.get("node")) for row in rows)
        for group in groups:
            own = [row for row in rows if (row.get("memory"), row.get("verified"), row.get("node")) == group]
            best = max(own, key=lambda row: float(row["rate"]))
            what = ", ".join(f"{key} {shown(key, best[key])}" for key in best if key not in ("rate", "pin_s"))
            lines.append(f"| {name} | {what} | {best['rate'] / 1e9:.1f} |")
    return "\n".join(lines)


def shown(key: str, value: Any) -> str:
    return f"{value >> 20} MiB" if key == "piece" else str(value)


def checks(results: Results) -> str:
    lines = ["| check | outcome |", "| --- | --- |"]
    for name, outcome in results["checks"].items():
        notes = "".join(f" ({note})" for note in outcome.get("result") or [])
        lines.append(f"| {name} | {said(outcome) or 'passed' + notes} |")
    return "\n".join(lines)
