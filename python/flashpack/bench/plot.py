"""A picture of what `flashpack bench` measures. Imports matplotlib."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

_LIMIT, _LOAD = "#bbbbbb", "#0072b2"


def require() -> Any:
    """The library that draws. Raises ImportError that says what to install."""
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError(
            "--plot needs matplotlib, which is not installed: pip install matplotlib"
        ) from error


def draw(path: str, limits: Mapping[str, float], loads: Mapping[str, float]) -> None:
    """Write bars of rates, in bytes per second, to an image whose format the suffix of `path` names."""
    names = [*limits, *loads]
    rates = [rate / 1e9 for rate in (*limits.values(), *loads.values())]
    figure = require().Figure(figsize=(8, 1 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, rates, color=[_LIMIT] * len(limits) + [_LOAD] * len(loads))
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("GB/s: limits of this machine grey, loads blue")
    figure.savefig(path)
