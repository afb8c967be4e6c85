"""Ctrl-C on the command line, whenever it comes."""

from __future__ import annotations

import signal

import pytest
from click.testing import CliRunner
from flashpack import cli
from processes import python


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "method"),
    [(cli.main, "parse_args"), (cli.main, "resolve_command"), (cli.metadata, "make_context")],
)
def test_an_interrupt_before_a_command_runs_ends_with_130(
    owner: object, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, interrupt)
    result = CliRunner().invoke(cli.main, ["metadata", "any"])
    assert result.exit_code == 130
    assert (result.stdout, result.stderr) == ("", "Interrupted\n")


SIGNALLED = """
import os, signal, sys
import flashpack.cli

signal.signal(signal.SIGINT, signal.default_int_handler)
flashpack.cli.metadata.parse_args = lambda *_: os.kill(os.getpid(), signal.SIGINT)
flashpack.cli.main(["metadata", "any"])
"""


def test_a_signal_ends_the_process_with_130() -> None:
    done = python("-c", SIGNALLED)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "Interrupted\n")
