"""What notebooks show of open files, explanations and reports."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import flashpack
import pytest
import torch
from helpers import MIB, noise


class Shown(HTMLParser):
    """The text of a page, whose elements must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, _: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(value: object) -> list[str]:
    return Shown(value._repr_html_()).texts  # type: ignore[attr-defined]


@pytest.fixture
def packed(path: Path) -> Path:
    tensors = {f"t.{number}": torch.ones(number, 2) for number in range(1, 31)}
    flashpack.save_file({"<b>&'\x1b": noise(torch.uint8, (3 * MIB,)), **tensors}, path)
    return path


def test_an_open_file_shows_its_first_tensors(packed: Path) -> None:
    with flashpack.open(packed) as file:
        texts = shown(file)
    assert texts[0].startswith(f"FlashPackFile {str(packed)!r}: 31 tensors, 3.15 MB, ")
    assert texts[1:5] == ["name", "dtype", "shape", "size"]
    assert texts.count("float32") == 19, "one is of bytes"
    assert texts[-1] == "and 11 more"
    assert "\x1b" not in "".join(texts)
    assert shown(file) == [f"<FlashPackFile {str(packed)!r}: closed>"]


def test_names_are_no_markup(path: Path) -> None:
    flashpack.save_file({"<b>&'\x1b": torch.ones(1)}, path)
    with flashpack.open(path) as file:
        assert "<b>&'\\x1b" in shown(file)
        assert "<b>" not in file._repr_html_()


def test_a_report_shows_its_stages_as_a_bar(packed: Path) -> None:
    flashpack.load_file(packed, eager=True)
    report = flashpack.last_load()
    texts = shown(report)
    lines = [line.strip() for line in str(report).splitlines()]
    assert texts[:2] == ["last load", lines[0]]
    assert any(text.strip().startswith("reading ") for text in texts)
    flashpack.load_file(packed)
    assert len(shown(flashpack.last_load())) == 2


def test_a_report_shows_what_each_thread_did(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flashpack.load_file(packed, eager=True)
    plain = flashpack.last_load()
    monkeypatch.setenv("FLASHPACK_TIMELINE", "1")
    flashpack.load_file(packed, eager=True)
    report = flashpack.last_load()
    assert plain is not None
    assert report is not None
    assert not plain.timeline
    assert {span.stage for span in report.timeline} == {"read", "hash"}
    assert {span.thread for span in report.timeline} <= set(range(report.threads))
    for stage in ("read", "hash"):
        spent = sum(span.ended - span.began for span in report.timeline if span.stage == stage)
        assert spent == pytest.approx(getattr(report, stage), abs=1e-6)
    assert all(0 <= span.began <= span.ended <= report.wall for span in report.timeline)
    page = report._repr_html_()
    assert Shown(page).texts[:1] == ["last load"]
    assert page.count("position:absolute") == len(report.timeline)
    assert "position:absolute" not in plain._repr_html_()


def test_an_explanation_begins_in_plain_words(packed: Path) -> None:
    texts = shown(flashpack.explain(packed, eager=True))
    assert texts[:2] == [f"load of {packed}", "in short"]
    assert texts[2].startswith("the load takes ")
    assert "there at once" in shown(flashpack.explain(packed))[2]
