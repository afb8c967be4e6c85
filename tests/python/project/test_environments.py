"""Locales that are not UTF-8, and the end of the interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import flashpack
import pytest
import torch

STATE = {"weight": torch.arange(4.0).reshape(2, 2), "bias": torch.zeros(2)}
PATHS = """
import json, os, sys
import flashpack, torch
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
path = sys.argv[1]
open(path, "rb").close()
folder = os.path.dirname(path)
model = torch.nn.Linear(2, 2)
flashpack.assign_from_file(model, path)
loaded = flashpack.load_file(path)
assert torch.equal(loaded["weight"], torch.arange(4.0).reshape(2, 2)), loaded
assert torch.equal(model.weight.detach(), loaded["weight"])
assert flashpack.is_flashpack_file(path)
assert flashpack.verify_file(path).verified_bytes
assert set(flashpack.load_file([path])) == {"weight", "bias"}
new = path.replace("mod", "new")
flashpack.save_file(loaded, new)
open(new, "rb").close()
back = revert_from_flashpack(new, new + ".safetensors")
open(back, "rb").close()
open(convert_to_flashpack(back, new + "2"), "rb").close()
try:
    flashpack.load_file(path + "absent")
except FileNotFoundError as error:
    assert error.filename == path + "absent", ascii(error.filename)
open(path + "wrong", "wb").write(b"GGUF" + bytes(range(99)))
try:
    flashpack.load_file(path + "wrong")
except flashpack.FlashPackError as error:
    str(error).encode()
    assert "GGUF" in str(error)
"""


def run_in(environment: dict[str, str], *args: object) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        env={**clean, **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr.decode(errors="replace")) == (0, "")


@pytest.fixture(scope="module")
def latin_1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if not shutil.which("localedef"):
        pytest.skip("needs localedef")
    folder = tmp_path_factory.mktemp("locale")
    subprocess.run(["localedef", "-i", "de_DE", "-f", "ISO-8859-1", folder / "de_DE"], check=False)
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE", "PYTHONUTF8": "0"}


def made(folder: Path, name: bytes) -> bytes:
    flashpack.save_file(STATE, folder / "m.flashpack")
    path = os.fsencode(folder) + b"/" + name
    (folder / "m.flashpack").rename(os.fsdecode(path))
    return path


@pytest.mark.parametrize(
    "name", [b"mod\xc3\xa8le.flashpack", b"mod\xe8le.flashpack"], ids=["utf-8", "latin-1"]
)
@pytest.mark.parametrize("locale", ["UTF-8", "C", "latin-1"])
def test_paths_mean_what_open_means(
    locale: str, name: bytes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment = {
        "UTF-8": {"PYTHONUTF8": "1"},
        "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    }.get(locale) or request.getfixturevalue("latin_1")
    path = os.fsdecode(made(tmp_path, name))
    run_in(environment, "-c", PATHS, path)
    run_in(environment, "-m", "flashpack", "verify", path)
    run_in(environment, "-m", "flashpack", "metadata", "-i", path)
    run_in(environment, "-m", "flashpack", "explain", path)


AT_THE_END = {
    "__del__": "class Last:\n    def __del__(self, load=flashpack.load_file): work(load)\nlast = Last()",
    "atexit": "import atexit; atexit.register(work, flashpack.load_file)",
    # As Python 3.12 has it for atexit, and any Python for a process that may have no more threads.
    "no threads": "import threading\n"
    "def refuse(thread): raise RuntimeError('can\\'t create new thread at interpreter shutdown')\n"
    "threading.Thread.start = refuse; work(flashpack.load_file)",
}


@pytest.mark.parametrize("when", AT_THE_END)
@pytest.mark.parametrize("what", ["load", "save"])
def test_work_at_the_end_of_the_interpreter(when: str, what: str, tmp_path: Path) -> None:
    path, copy = tmp_path / "m.flashpack", tmp_path / "copy.flashpack"
    flashpack.save_file({"a": torch.ones(20 << 20)}, path)  # more than is loaded inline
    save = f"; save(tensors, {str(copy)!r})" if what == "save" else ""
    program = (
        "import os, flashpack, torch\n"
        f"def work(load, save=flashpack.save_file, write=os.write):\n"
        f"    tensors = load({str(path)!r}, eager=True){save}; write(1, b'done')\n"
        f"{AT_THE_END[when]}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done", b"")
    if what == "save":
        assert torch.equal(flashpack.load_file(copy)["a"], torch.ones(20 << 20))
