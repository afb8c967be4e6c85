"""The two charts, light and dark, from the CSV of a run: `plots.py FILE.csv`.

Both are of loads into a module until every page has been touched: by model size beside accelerate and
safetensors, and of the largest models beside `load_state_dict` of what torch.load and safetensors give.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import report
from matplotlib import pyplot as plt
from matplotlib import ticker

STATES = {"hot": "from the page cache", "cold": "from the disk"}
THEMES = {"light": ("#ffffff", "#1f2328", "#d0d7de"), "dark": ("#0d1117", "#e6edf3", "#30363d")}
BY_SIZE = {
    "flashpack": "flashpack",
    "safetensors 0.8.0": "safetensors 0.8.0",
    "accelerate 1.15.0": "accelerate 1.15.0",
}
STATE_DICT = {
    "flashpack": "flashpack assign_from_file",
    "torch.load": "load_state_dict(torch.load)",
    "torch.load, mmap, assign=True": "the same with mmap, assign=True",
    "safetensors 0.8.0": "load_state_dict(load_file)",
}
COLOURS = ["#e8590c", "#4c8dd6", "#8b949e", "#3f9d56"]
MANY_SMALL = "many"  # its time is that of tensors, not of bytes: no place in a chart over bytes


def draw(path: Path) -> Iterator[Path]:
    """Draw both charts beside the CSV; the files."""
    rows = [row for row in report.select(report.read(path), group="module") if row["model"] != MANY_SMALL]
    states = [state for state in STATES if report.select(rows, state=state)]
    if not states:
        return
    for theme, (background, text, grid) in THEMES.items():
        colours = {"axes.facecolor": background, "figure.facecolor": background, "axes.edgecolor": grid}
        texts = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), text)
        legend = {"legend.facecolor": background, "legend.edgecolor": grid}
        with mpl.rc_context({**colours, **texts, **legend, "grid.color": grid, "font.size": 10}):
            for name, chart in (("load", by_size), ("load_state_dict", state_dict)):
                figure = chart(rows, states)
                target = path.with_name(f"{name}-{theme}.png")
                figure.savefig(target, dpi=150)
                plt.close(figure)
                yield target


def by_size(rows: list[dict[str, Any]], states: list[str]) -> Any:
    """A row of panels for each state: seconds, and GB/s, over the bytes of the model."""
    figure, panels = plt.subplots(len(states), 2, figsize=(9, 3.6 * len(states)), squeeze=False)
    for state, (left, right) in zip(states, panels, strict=True):
        for (name, label), colour in zip(BY_SIZE.items(), COLOURS, strict=False):
            points = sorted(_points(report.select(rows, state=state, contender=name)))
            sizes = [size / 1e9 for size, _ in points]
            style = {"marker": "o", "color": colour, "label": label}
            left.plot(sizes, [seconds for _, seconds in points], **style)
            right.plot(sizes, [size / seconds / 1e9 for size, seconds in points], **style)
        left.set(title=f"Load time, {STATES[state]}", ylabel="seconds", yscale="log")
        right.set(title=f"Rate, {STATES[state]}", ylabel="GB/s", ylim=(0, None))
        left.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        for panel in (left, right):
            panel.set_xlabel("model, GB")
            panel.set_xlim(0, None)
            panel.grid(visible=True, linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend()
    figure.tight_layout()
    return figure


def state_dict(rows: list[dict[str, Any]], states: list[str]) -> Any:
    """A panel for each state: seconds of each way, for the largest models."""
    sizes = {row["model"]: int(row["bytes"]) for row in rows}
    largest = sorted(sizes, key=sizes.__getitem__)[-2:]
    figure, panels = plt.subplots(1, len(states), figsize=(4.8 * len(states), 4), squeeze=False)
    width = 0.8 / len(STATE_DICT)
    for state, panel in zip(states, panels[0], strict=True):
        for number, ((name, label), colour) in enumerate(zip(STATE_DICT.items(), COLOURS, strict=True)):
            chosen = report.select(rows, state=state, contender=name)
            medians = [
                report.median(report.select(chosen, model=model), "touched_wall_s") for model in largest
            ]
            known = {place: seconds for place, seconds in enumerate(medians) if seconds is not None}
            places = [place + (number - 1.5) * width for place in known]
            bars = panel.bar(places, list(known.values()), width, color=colour, label=label)
            panel.bar_label(bars, fmt="%.2g", fontsize=8, padding=2)
        panel.set_xticks(range(len(largest)), [f"{model}, {sizes[model] / 1e9:.2g} GB" for model in largest])
        panel.set(title=f"Into a module, {STATES[state]}", ylabel="seconds")
        panel.grid(visible=True, axis="y", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    return figure


def _points(rows: list[dict[str, Any]]) -> Iterator[tuple[int, float]]:
    for size in {row["bytes"] for row in rows}:
        seconds = report.median(report.select(rows, bytes=size), "touched_wall_s")
        if seconds:
            yield int(size), seconds


if __name__ == "__main__":
    for chart in draw(Path(sys.argv[1])):
        print(chart)
