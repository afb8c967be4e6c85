"""The programs of examples/, run: TorchScript from Python and from C++, AOTInductor, the Rust crate."""

from __future__ import annotations

import subprocess
from pathlib import Path

import flashpack.ops
import pytest
import torch
from processes import python, succeed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


def run(*command: object) -> str:
    """What a program wrote that must succeed."""
    return succeed(
        subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with the module and its weights, and what Python computes with them."""
    folder = tmp_path_factory.mktemp("torchscript")
    return folder, succeed(python("-W", "ignore", EXAMPLES / "torchscript.py", folder))


def test_a_program_without_python_computes_the_same(made: tuple[Path, str]) -> None:
    folder, expected = made
    torch_folder = Path(torch.__file__).parent
    run("make", "--silent", "-C", EXAMPLES / "cpp", f"TORCH={torch_folder}", f"OUT={folder}", "CXXFLAGS=-O0")
    program, library = folder / "run", flashpack.ops.library_path()
    assert len(expected.split()) == 4
    assert run(program, library, folder / "model.pt", folder / "model.flashpack") == expected
    missing = [program, library, folder / "model.pt", folder / "missing"]
    done = subprocess.run(missing, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot open" in done.stderr


def test_the_crate_reads_what_python_wrote(tmp_path: Path) -> None:
    path = tmp_path / "model.flashpack"
    tensors = {"weight": torch.ones(3, 2), "step": torch.tensor(2301)}
    flashpack.save_file(tensors, path, metadata={"made": "here"})

    told = run("cargo", "run", "--quiet", "--features", "cuda", "--example", "inspect", "--", path)
    assert told.splitlines() == [
        "macroblock of 6 float32 at byte 0",
        "macroblock of 1 int64 at byte 4096",
        "metadata made = here",
        "weight: float32 [3, 2], begins [00, 00, 80, 3f]",
        "step: int64 [], begins [fd, 08, 00, 00]",
    ]


def test_a_compiled_package_takes_its_weights_from_files(tmp_path: Path) -> None:
    printed = succeed(python("-W", "ignore", EXAMPLES / "aotinductor.py", tmp_path)).splitlines()
    assert [line.split()[0] for line in printed] == ["first", "second"]
    assert printed[0].split()[1:] != printed[1].split()[1:]
