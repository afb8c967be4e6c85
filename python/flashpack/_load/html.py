"""What notebooks show: tables and bars, all text escaped. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from .._core.text import printable

# Distinct, also for those who see few colours (Okabe and Ito).
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def titled(title: str, *parts: str) -> str:
    """Parts under a title."""
    return f"<div><strong>{_text(title)}</strong>{''.join(parts)}</div>"


def table(rows: Iterable[Sequence[object]], heads: Sequence[str] = ()) -> str:
    """Rows of cells."""
    head = "".join(f"<th style='text-align:left'>{_text(each)}</th>" for each in heads)
    body = "".join(
        f"<tr>{''.join(f'<td style=text-align:left>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def bar(parts: Mapping[str, float]) -> str:
    """One bar of coloured parts, each as wide as its share, with a legend. Nothing for parts of no size."""
    total = sum(parts.values())
    shown = {label: size / total for label, size in parts.items() if total > 0 and size > 0}
    colours = dict(zip(parts, _COLOURS, strict=False))
    pieces = "".join(
        f"<div title='{_text(label)}' style='width:{share:.2%};background:{colours[label]}'></div>"
        for label, share in shown.items()
    )
    legend = "".join(
        f"<span style='margin-right:1em'><span style='color:{colours[label]}'>&#9632;</span> "
        f"{_text(label)} {share:.0%}</span>"
        for label, share in shown.items()
    )
    return f"<div style='display:flex;height:1em;max-width:40em'>{pieces}</div><div>{legend}</div>"


def rows(spans: Iterable[tuple[int, str, float, float]], labels: Sequence[str]) -> str:
    """A line for each row, with what lies where in it: row, label, start and end.

    A label has the colour that `bar` gives it among `labels`. Nothing for no spans.
    """
    found = list(spans)
    total = max((end for *_, end in found), default=0.0)
    if total <= 0:
        return ""
    colours = dict(zip(labels, _COLOURS, strict=False))
    lines: dict[int, list[str]] = {}
    for row, label, start, end in found:
        place = f"left:{start / total:.2%};width:{(end - start) / total:.2%};background:{colours[label]}"
        piece = f"<div title='{_text(label)}' style='position:absolute;height:100%;{place}'></div>"
        lines.setdefault(row, []).append(piece)
    line = "<div style='position:relative;height:0.6em;max-width:40em;margin-top:1px'>{}</div>"
    return "".join(line.format("".join(pieces)) for pieces in lines.values())


def _text(value: object) -> str:
    return escape(printable(value))
