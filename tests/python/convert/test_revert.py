"""Conversion from FlashPack back to other formats."""

from __future__ import annotations

import re
from pathlib import Path

import flashpack
import pytest
import torch
from conversion import snapshot, some_tensors
from flashpack.commands import revert_from_flashpack
from helpers import DTYPES, SAFETENSORS_DTYPES, assert_same, dtype_id, flip_byte, listing, noise, place_of
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor


@pytest.fixture
def packed(path: Path) -> Path:
    flashpack.save_file(some_tensors(), path, metadata={"licence": "mit"})
    return path


def test_revert_keeps_metadata_and_says_format_pt(packed: Path, tmp_path: Path) -> None:
    revert_from_flashpack(packed, tmp_path / "back.safetensors")
    with safe_open(tmp_path / "back.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "licence": "mit"}


def test_revert_says_format_pt_without_other_metadata(path: Path, tmp_path: Path) -> None:
    flashpack.save_file({"a": torch.ones(1)}, path)
    revert_from_flashpack(path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def tied() -> dict[str, Tensor]:
    weight = noise(torch.float32, (8, 4))
    return {"embed.weight": weight, "head.weight": weight, "bias": noise(torch.float32, (8,), seed=1)}


def test_tied_tensors_are_written_twice_to_safetensors(path: Path, tmp_path: Path) -> None:
    flashpack.save_file(tied(), path)
    revert_from_flashpack(path)
    loaded = load_file(tmp_path / "model.safetensors")
    assert_same(loaded, tied())
    assert loaded["embed.weight"].data_ptr() != loaded["head.weight"].data_ptr()


def test_tied_tensors_stay_tied_in_torch_files(path: Path, tmp_path: Path) -> None:
    flashpack.save_file(tied(), path)
    revert_from_flashpack(path, tmp_path / "back.pt")
    loaded = torch.load(tmp_path / "back.pt", weights_only=True)
    assert_same(loaded, tied())
    assert loaded["embed.weight"].data_ptr() == loaded["head.weight"].data_ptr()


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".odd", ""])
def test_every_dtype_to_a_torch_file(path: Path, tmp_path: Path, suffix: str) -> None:
    given = {dtype_id(dtype): noise(dtype, (3, 2), seed=8) for dtype in DTYPES}
    flashpack.save_file(given, path)
    destination = tmp_path / f"back{suffix}"
    revert_from_flashpack(path, destination)
    assert_same(torch.load(destination, weights_only=True), given)


def test_a_torch_file_holds_no_more_than_its_tensors(path: Path, tmp_path: Path) -> None:
    given = {f"{number}": noise(torch.float32, (1000,), number) for number in range(20)}
    flashpack.save_file(given, path)
    revert_from_flashpack(path, tmp_path / "back.pt")
    assert (tmp_path / "back.pt").stat().st_size < 2 * 20 * 4000


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in DTYPES if dtype not in SAFETENSORS_DTYPES], ids=dtype_id
)
def test_what_safetensors_has_no_name_for(path: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Refused naming tensor and type, unless this release of safetensors can read it back."""
    given = {"fine": torch.ones(2), "odd one": noise(dtype, (3,), seed=9)}
    flashpack.save_file(given, path)
    if dtype == torch.complex32:
        with pytest.raises(ValueError, match=r"Unsupported dtype.*complex32.*odd one"):
            revert_from_flashpack(path)
        assert listing(tmp_path) == {path.name}
    else:
        try:
            revert_from_flashpack(path)
        except ValueError as error:
            assert "odd one" in str(error)
            assert listing(tmp_path) == {path.name}
        else:
            assert_same(load_file(tmp_path / "model.safetensors"), given)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["trailer", "footer"])
def test_revert_refuses_an_unsound_file(packed: Path, tmp_path: Path, suffix: str, damage: str) -> None:
    size = packed.stat().st_size
    flip_byte(packed, size - (1 if damage == "trailer" else 40))
    destination = tmp_path / f"back{suffix}"
    destination.write_bytes(b"the old file")
    before = snapshot(tmp_path)
    with pytest.raises(flashpack.FlashPackError, match=re.escape(str(packed))):
        revert_from_flashpack(packed, destination)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_revert_refuses_a_damaged_payload(packed: Path, tmp_path: Path, suffix: str) -> None:
    """Damage must not be laundered into a file without checksums."""
    flip_byte(packed, place_of(packed, "block.0.weight")[0])
    with pytest.raises(flashpack.ChecksumError, match=re.escape(str(packed))):
        revert_from_flashpack(packed, tmp_path / f"back{suffix}")
    assert listing(tmp_path) == {packed.name}
