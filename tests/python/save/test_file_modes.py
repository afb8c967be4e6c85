"""The mode of files that are written, and links that lead to them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import flashpack
import pytest
import torch
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from helpers import listing
from safetensors.torch import save_file

# With 0.4.5 the mode is 0600 whatever the umask, and a symbolic link is replaced.


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_by_packing(folder: Path, destination: Path) -> None:
    del folder
    flashpack.pack_to_file({"a": torch.ones(3)}, destination)


def write_by_converting(folder: Path, destination: Path) -> None:
    save_file({"a": torch.ones(3)}, folder / "source.safetensors")
    convert_to_flashpack(folder / "source.safetensors", destination)


def write_by_reverting(folder: Path, destination: Path) -> None:
    flashpack.save_file({"a": torch.ones(3)}, folder / "source.flashpack")
    revert_from_flashpack(folder / "source.flashpack", destination.with_suffix(".safetensors"))


def write_by_reverting_to_torch(folder: Path, destination: Path) -> None:
    flashpack.save_file({"a": torch.ones(3)}, folder / "source.flashpack")
    revert_from_flashpack(folder / "source.flashpack", destination.with_suffix(".pt"))


WRITERS: dict[Callable[[Path, Path], None], str] = {
    write_by_packing: "out.flashpack",
    write_by_converting: "out.flashpack",
    write_by_reverting: "out.safetensors",
    write_by_reverting_to_torch: "out.pt",
}


@pytest.fixture(params=WRITERS, ids=lambda writer: writer.__name__)
def writer(request: pytest.FixtureRequest) -> Callable[[Path, Path], None]:
    chosen: Callable[[Path, Path], None] = request.param
    return chosen


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o000])
def test_the_umask_is_honoured(tmp_path: Path, writer: Callable[[Path, Path], None], mask: int) -> None:
    destination = tmp_path / WRITERS[writer]
    with umask(mask):
        writer(tmp_path, destination)
    assert mode_of(destination) == 0o666 & ~mask


def test_a_replaced_file_keeps_its_mode(tmp_path: Path, writer: Callable[[Path, Path], None]) -> None:
    destination = tmp_path / WRITERS[writer]
    destination.write_bytes(b"old")
    destination.chmod(0o640)
    writer(tmp_path, destination)
    assert destination.read_bytes() != b"old"
    assert mode_of(destination) == 0o640


@pytest.mark.parametrize("target", ["existing", "dangling", "chain"])
def test_a_symbolic_link_is_followed(
    tmp_path: Path, writer: Callable[[Path, Path], None], target: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real"
    if target == "existing":
        real.write_bytes(b"old")
    link = tmp_path / WRITERS[writer]
    if target == "chain":
        (tmp_path / "middle").symlink_to("elsewhere/real")
        link.symlink_to("middle")
    else:
        link.symlink_to(Path("elsewhere") / "real")
    writer(tmp_path, link)
    assert link.is_symlink()
    assert real.is_file()
    assert not real.is_symlink()
    assert real.read_bytes() != b"old"
    assert listing(real.parent) == {"real"}
