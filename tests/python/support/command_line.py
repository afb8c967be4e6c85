"""The command line for tests: run by click, and files to run it on."""

from __future__ import annotations

from pathlib import Path

import flashpack
import torch
from click.testing import CliRunner, Result
from flashpack.__main__ import main
from helpers import FIXTURES, noise
from safetensors.torch import save_file
from torch import Tensor

HELP = {
    "convert": {
        *("--subfolder", "--variant", "--revision", "--dtype", "--ignore-names", "--ignore-prefixes"),
        *("--ignore-suffixes", "--use-transformers", "--use-diffusers", "--verbose", "-v"),
    },
    "revert": {"--quiet", "-q", "--verbose", "-v"},
    "ls": {"--depth", "-d", "--sort", "-s", "--reverse", "-r", "--long", "-l", "--json", "-j"},
    "diff": {"--json", "-j", "--quiet", "-q", "--verbose", "-v"},
    "extract": {"--max-shard-size", "--checksum", "--quiet", "--verbose"},
    "merge": {"--max-shard-size", "--checksum", "--quiet", "--verbose"},
    "rename": {"--output", "-o", "--max-shard-size", "--checksum", "--quiet", "--verbose"},
    "edit-metadata": {"--set", "--remove", "--output", "-o", "--checksum", "--quiet", "--verbose"},
    "metadata": {"--show-index", "-i", "--json", "-j"},
    "sign": {"--key", "--verbose", "-v"},
    "verify": {"--key", "--verbose", "-v"},
    "bench": {"--device", "--rounds", "--cold", "--plot", "--verbose", "-v"},
    "explain": {"--device", "--eager", "--verbose", "-v"},
}


def needed(command: str, path: Path) -> list[object]:
    """What a command needs beside `path`."""
    others: dict[str, list[object]] = {
        "convert": [path.with_name("new.flashpack")],
        "sign": ["--key", FIXTURES / "keys" / "private.pem"],
        "diff": [path],
        "extract": [path.with_name("new.flashpack"), "*"],
        "merge": [path.with_name("new.flashpack")],
        "rename": ["*", "model.*"],
        "edit-metadata": ["--set", "a=b"],
    }
    return others.get(command, [])


def run(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def tensors() -> dict[str, Tensor]:
    return {
        "encoder.weight": noise(torch.float32, (24, 16), seed=1),
        "encoder.bias": noise(torch.float32, (24,), seed=2),
        "encoder.steps": torch.tensor(2301),
        "head.weight": torch.linspace(-3, 3, 64).reshape(4, 16),
    }


def saved(path: Path) -> Path:
    """A file of `tensors()`, in the format of its suffix."""
    save = save_file if path.suffix == ".safetensors" else flashpack.save_file
    save(tensors(), path, {"format": "pt", "made": "by a test"})
    return path


def assert_success(result: Result, *shown: object) -> None:
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Success: ")
    assert all(str(text) in result.stdout for text in shown), result.stdout
    assert result.stderr == ""


def assert_failure(result: Result, *shown: object, code: int = 1) -> None:
    assert result.exit_code == code
    assert result.stderr.startswith("Error: ")
    assert all(str(text) in result.stderr for text in shown), result.stderr
    assert "Traceback" not in result.output
    assert "Success" not in result.output
