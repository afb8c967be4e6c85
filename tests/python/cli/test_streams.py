"""Reports and progress on standard streams that cannot take them: the work is done all the same."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import flashpack
import pytest
import torch
from flashpack import FlashPackMixin
from flashpack._core import progress as _progress
from flashpack._core import text as _printable
from helpers import run_python
from torch import nn


class Model(nn.Linear, FlashPackMixin):
    def __init__(self) -> None:
        super().__init__(2, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "模型é.flashpack"
    flashpack.save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2), "größe": torch.ones(1)}, path)
    return path


def encoded(encoding: str) -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def closed() -> TextIO:
    stream = encoded("utf-8")
    stream.close()
    return stream


def broken_pipe() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


STREAMS: dict[str, Callable[[], TextIO | None]] = {
    "ASCII": lambda: encoded("ascii"),
    "Latin-1": lambda: encoded("latin-1"),
    "absent": lambda: None,
    "closed": closed,
    "a broken pipe": broken_pipe,
}


def work_aloud(path: Path) -> Model:
    """Everything that prints, or draws a bar."""
    _progress.run(lambda _: time.sleep(0.3), label="Lade…", size=_progress.INLINE_BYTES, silent=False)
    model = Model.from_flashpack(path, strict_params=False)
    for eager in (False, True):
        flashpack.assign_from_file(model, path, silent=False, eager=eager, strict_params=False)
    with flashpack.utils.timer("ä"):
        model.save_flashpack(path.with_name("copy.flashpack"))
    return model


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a pipe's last flush
@pytest.mark.parametrize("name", STREAMS)
def test_a_load_ends_well_whatever_its_report_meets(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "_QUIET_SECONDS", 0)
    stream = STREAMS[name]()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", STREAMS[name]())
        model = work_aloud(path)
    assert model.weight.eq(1).all()
    if isinstance(stream, io.TextIOWrapper) and not stream.closed and isinstance(stream.buffer, io.BytesIO):
        said = stream.buffer.getvalue()
        assert said.count(b"\\u6a21\\u578b\\xe9.flashpack") == 3
        assert said.count(b"Discarded 1 names: ['gr\\xf6\\xdfe']") == 3


def test_nothing_is_left_for_the_end_of_a_program_without_descriptors(path: Path) -> None:
    code = """
import os, sys, torch, flashpack
kept = os.dup(1)
os.close(1)
os.close(2)
flashpack.assign_from_file(torch.nn.Linear(2, 2), sys.argv[1], silent=False, strict_params=False)
os.write(kept, b"done")
"""
    assert run_python(code, path) == "done"


def test_a_report_shows_names_that_can_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    _printable.say("größe\x1b[31m\nzwei")
    assert capsys.readouterr().out == "größe\\x1b[31m\nzwei\n"


def test_a_missing_stream_wants_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not _progress.wants_bar(None)
    assert not _progress.wants_bar(False)
