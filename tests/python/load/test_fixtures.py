"""Files that flashpack 0.4.5 wrote must load bit for bit; corrupt ones must be refused, by every door."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack import deserialization
from helpers import FIXTURES, HOSTILE, assert_same, bits
from torch import Tensor, nn

GOLDEN: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text())["files"]
EDITED: dict[str, Any] = json.loads((HOSTILE / "expected.json").read_text())["files"]
REFUSED = sorted(name for name, entry in EDITED.items() if entry["must"] == "refuse")
CONTROLS = sorted(name for name, entry in EDITED.items() if entry["must"] == "accept")


def by_handle(path: Path) -> dict[str, Tensor]:
    with flashpack.open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def by_blocks(path: Path) -> dict[str, Tensor]:
    storage, footer = deserialization.read_flashpack_file(path)
    return dict(deserialization.iterate_from_flash_tensor(storage, footer))


def by_eager_blocks(path: Path) -> dict[str, Tensor]:
    storage, footer = deserialization.read_flashpack_file(path, eager=True)
    return dict(deserialization.iterate_from_flash_tensor(storage, footer))


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "lazy": lambda path: flashpack.load_file(path, eager=False),
    "eager": lambda path: flashpack.load_file(path, eager=True),
    "eager-unverified": lambda path: flashpack.load_file(path, eager=True, verify=False),
    "handle": by_handle,
    "blocks": by_blocks,
    "eager-blocks": by_eager_blocks,
    "revert": deserialization.revert_from_file,
}


def describe(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(bits(tensor)).hexdigest(),
    }


def test_there_are_fixtures() -> None:
    assert len(GOLDEN) >= 40
    assert len(REFUSED) >= 60
    assert len(CONTROLS) >= 8
    assert {path.name for path in FIXTURES.glob("*.flashpack")} == set(GOLDEN)
    assert {path.name for path in HOSTILE.glob("*.flashpack")} == set(EDITED)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_file_loads_bit_for_bit(name: str, reader: str) -> None:
    tensors = READERS[reader](FIXTURES / name)
    assert list(tensors) == GOLDEN[name]["order"]
    assert {key: describe(tensor) for key, tensor in tensors.items()} == GOLDEN[name]["tensors"]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_file_is_what_0_4_5_wrote_and_says_so(name: str) -> None:
    path = FIXTURES / name
    assert hashlib.sha256(path.read_bytes()).hexdigest() == GOLDEN[name]["file_sha256"]
    assert flashpack.is_flashpack_file(path) is True
    footer = flashpack.get_flashpack_file_metadata(path)
    assert footer["format"] == GOLDEN[name]["format"]
    assert footer["align_bytes"] == GOLDEN[name]["align_bytes"]
    assert [record["name"] for record in footer["index"]] == GOLDEN[name]["order"]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_file_survives_repacking(name: str, path: Path) -> None:
    before = flashpack.load_file(FIXTURES / name)
    flashpack.save_file(before, path)
    after = flashpack.load_file(path, eager=True, verify=True)
    assert_same(after, before)


@pytest.mark.parametrize("name", ["v3_float32.flashpack", "v4_scalars.flashpack"])
def test_a_file_without_checksums_cannot_be_verified(name: str) -> None:
    path = FIXTURES / name
    with pytest.raises(ValueError, match="holds no checksums") as caught:
        flashpack.load_file(path, verify=True)
    assert str(path) in str(caught.value)
    report = flashpack.verify_file(path)
    assert report.algorithm is None
    assert report.verified_bytes == 0


DOORS: dict[str, Callable[[Path], object]] = {
    "load_file": flashpack.load_file,
    "load_file-eager": lambda path: flashpack.load_file(path, eager=True),
    "open": flashpack.open,
    "assign_from_file": lambda path: flashpack.assign_from_file(nn.Linear(2, 2), path, strict_params=False),
    "metadata": flashpack.get_flashpack_file_metadata,
    "verify_file": flashpack.verify_file,
    "read_flashpack_file": deserialization.read_flashpack_file,
    "revert_from_file": deserialization.revert_from_file,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", REFUSED)
def test_hostile_file_is_refused_by_name(name: str, door: str) -> None:
    path = HOSTILE / name
    with pytest.raises(ValueError) as caught:
        DOORS[door](path)
    assert type(caught.value) is flashpack.FlashPackError
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < len(str(path)) + 400
    assert "[flashpack:" not in message


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_file_is_no_flashpack_file(name: str) -> None:
    assert flashpack.is_flashpack_file(HOSTILE / name) is False


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short_15.flashpack", "File too small"),
        ("bad_magic.flashpack", "Bad magic"),
        ("footer_len_2_63.flashpack", "Corrupt footer length"),
        ("format_v6.flashpack", "Unexpected format"),
        ("dtype_bogus.flashpack", "Unsupported dtype"),
        ("v3_misaligned.flashpack", "misaligned"),
        ("v4_misaligned.flashpack", "misaligned"),
        ("v4_macroblock_7.flashpack", "macroblock"),
        ("v4_macroblock_neg.flashpack", "macroblock"),
    ],
)
def test_messages_people_match_on(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flashpack.get_flashpack_file_metadata(HOSTILE / name)


@pytest.mark.parametrize("name", CONTROLS)
def test_control_is_accepted(name: str) -> None:
    path = HOSTILE / name
    assert flashpack.is_flashpack_file(path)
    lazy, eager = flashpack.load_file(path), flashpack.load_file(path, eager=True)
    assert lazy
    assert_same(eager, lazy)
    assert_same(by_blocks(path), lazy)


def test_records_of_one_range_share_memory() -> None:
    tensors = flashpack.load_file(HOSTILE / "control_tied_ranges.flashpack")
    addresses = [tensor.data_ptr() for tensor in tensors.values() if tensor.numel()]
    assert len(set(addresses)) < len(addresses)


def test_scalars_have_no_dimensions() -> None:
    scalars = flashpack.load_file(FIXTURES / "v4_scalars.flashpack")
    shapes = {name: entry["shape"] for name, entry in GOLDEN["v4_scalars.flashpack"]["tensors"].items()}
    assert [] in shapes.values()
    for name, shape in shapes.items():
        assert scalars[name].shape == torch.Size(shape)
