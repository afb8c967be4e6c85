"""What works where torch is not installed, and what is said of the rest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from flashpack.commands import convert_to_flashpack
from helpers import noise
from processes import python, succeed
from safetensors.torch import save_file

# As if torch were not installed.
BLOCKED = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
"""
ADVICE = "needs PyTorch, which is not installed: pip install 'torch>=2.11'"


def without_torch(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return python("-c", BLOCKED + code, *args)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return without_torch("from flashpack.__main__ import main; main()", *words)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file({"a": noise(torch.float32, (3, 5))}, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


NUMPY = """
import flashpack, numpy
array = numpy.arange(6.0).reshape(2, 3)
flashpack.numpy.save_file({"a": array}, sys.argv[1])
assert (flashpack.numpy.load_file(sys.argv[1])["a"] == array).all()
assert flashpack.is_flashpack_file(sys.argv[1])
assert flashpack.verify_file(sys.argv[1]).verified_bytes == 48
"""


def test_numpy_needs_none(path: Path) -> None:
    succeed(without_torch(NUMPY, path))


NAMES = """
import flashpack
for name in ("load_file", "save_file", "assign_from_file", "open", "safe_open", "FlashPackMixin", "mixin"):
    try:
        getattr(flashpack, name)
    except ImportError as error:
        print(error)
"""


def test_what_needs_it_says_what_to_install() -> None:
    lines = succeed(without_torch(NAMES)).splitlines()
    names = ["load_file", "save_file", "assign_from_file", "open", "safe_open", "FlashPackMixin", "mixin"]
    assert lines == [f"flashpack.{name} {ADVICE}" for name in names]


def test_commands_on_safetensors_need_none(source: Path) -> None:
    succeed(command("convert", source, "--dtype", "bf16"))
    packed = source.with_suffix(".flashpack")
    for words in (("metadata",), ("verify",), ("explain",), ("revert", source.with_name("back.safetensors"))):
        succeed(command(words[0], packed, *words[1:]))


def test_warnings_still_point_at_the_caller(source: Path) -> None:
    with pytest.warns(UserWarning, match="fits no tensor's name") as caught:
        convert_to_flashpack(source, ignore_names=["absent"])
    assert [warning.filename for warning in caught] == [__file__]


def test_commands_that_need_it_say_what_to_install(source: Path) -> None:
    succeed(command("convert", source))
    torch.save({"a": torch.ones(3)}, source.with_name("other.pt"))
    for words in (
        ("convert", source.with_name("other.pt")),
        ("convert", source, "--dtype", "float8_e4m3fn"),
        ("revert", source.with_suffix(".flashpack"), source.with_name("back.pt")),
    ):
        done = command(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"Error: this conversion {ADVICE}\n"
