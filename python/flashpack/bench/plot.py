"""A picture of what `flashpack bench` measures. Imports matplotlib."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from .._load.report import STAGES, LoadReport

_LIMIT, _LOAD = "#bbbbbb", "#0072b2"
_BAR_INCHES, _THREAD_INCHES, _MARGIN_INCHES = 0.4, 0.15, 1.0


def require() -> Any:
    """The library that draws. Raises ImportError that says what to install."""
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError(
            "--plot needs matplotlib, which is not installed: pip install matplotlib"
        ) from error


def draw(
    path: str, limits: Mapping[str, float], loads: Mapping[str, float], name: str, report: LoadReport | None
) -> None:
    """Write bars of rates, in bytes per second, and the time line of the load `name`, to an image.

    The suffix of `path` names its format.
    """
    spans = report.timeline if report else ()
    heights = [_MARGIN_INCHES + _BAR_INCHES * (len(limits) + len(loads))]
    if spans:
        heights.append(_MARGIN_INCHES + _THREAD_INCHES * len({span.thread for span in spans}))
    figure = require().Figure(figsize=(8, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    _rates(axes[0], limits, loads)
    if report and spans:
        _timeline(axes[1], name, report)
    figure.savefig(path)


def _rates(axes: Any, limits: Mapping[str, float], loads: Mapping[str, float]) -> None:
    rates = [rate / 1e9 for rate in (*limits.values(), *loads.values())]
    bars = axes.barh([*limits, *loads], rates, color=[_LIMIT] * len(limits) + [_LOAD] * len(loads))
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel("GB/s: limits of this machine grey, loads blue")


def _timeline(axes: Any, name: str, report: LoadReport) -> None:
    """What each thread did when, a colour for each stage."""
    for number, (stage, label) in enumerate(STAGES.items()):
        spans = [span for span in report.timeline if span.stage == stage]
        if spans:
            axes.barh(
                [span.thread for span in spans],
                [(span.ended - span.began) * 1e3 for span in spans],
                left=[span.began * 1e3 for span in spans],
                color=f"C{number}",
                label=label,
            )
    axes.invert_yaxis()
    axes.set_yticks(sorted({span.thread for span in report.timeline}))
    axes.set_ylabel("thread")
    axes.set_xlabel(f"{name}: ms since it began to read")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(STAGES))
