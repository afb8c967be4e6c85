"""safetensors' calls under our name: the same files give what safetensors itself gives."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import flashpack
import pytest
import safetensors.torch
import torch
from helpers import SAFETENSORS_DTYPES, assert_same, bits, flip_byte, noise
from safetensors import safe_open
from torch import Tensor, nn

# Each of another size: a file has the largest first, and safetensors another order.
TENSORS = {str(dtype): noise(dtype, (3, 4 + place), place) for place, dtype in enumerate(SAFETENSORS_DTYPES)}


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"format": "pt", "step": "7"})
    return path


@pytest.fixture
def packed(path: Path) -> Path:
    flashpack.save_file(TENSORS, path, {"format": "pt", "step": "7"})
    return path


@pytest.fixture(params=["packed", "theirs"])
def either(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.mark.parametrize("arguments", [(), ("pt",), ("pt", "cpu"), ("torch", torch.device("cpu"))])
def test_a_handle_tells_what_safe_open_tells(either: Path, theirs: Path, arguments: tuple[Any, ...]) -> None:
    with flashpack.safe_open(either, *arguments) as ours, safe_open(theirs, "pt") as expected:
        assert sorted(ours.keys()) == sorted(expected.keys())
        assert ours.metadata() == expected.metadata()
        for name in expected.keys():  # noqa: SIM118 (not a dict)
            part, their_part = ours.get_slice(name), expected.get_slice(name)
            assert part.get_dtype() == their_part.get_dtype()
            if part.dtype != torch.float4_e2m1fn_x2:  # of which safetensors counts each half of a byte
                assert part.get_shape() == their_part.get_shape()
        assert_same(ours.get_tensors(), expected.get_tensors())


def test_offset_keys_follow_the_file(theirs: Path) -> None:
    with flashpack.open(theirs) as ours, safe_open(theirs, "pt") as expected:
        assert ours.offset_keys() == expected.offset_keys()


def test_a_handle_is_read_like_a_dict(either: Path) -> None:
    with flashpack.open(either, framework="pt", device="cpu") as file:
        assert list(file) == file.keys()
        assert_same(dict(file.items()), TENSORS)
        assert_same({name: file[name] for name in file}, TENSORS)
        with pytest.raises(KeyError, match="nobody"):
            file["nobody"]


def test_shape_and_dtype_are_known_without_reading(path: Path) -> None:
    flashpack.save_file({"weight": torch.ones(300, 400, dtype=torch.bfloat16)}, path)
    flip_byte(path, 0)
    with flashpack.open(path) as file:
        part = file.get_slice("weight")
        assert (part.shape, part.dtype, part.get_dtype()) == ((300, 400), torch.bfloat16, "BF16")
        with pytest.raises(flashpack.ChecksumError):
            part[:]  # a part that is read is verified


def test_dtypes_that_safetensors_lacks_keep_torchs_name(path: Path) -> None:
    flashpack.save_file({"c": noise(torch.complex128, (2,))}, path)
    with flashpack.open(path) as file:
        assert file.get_slice("c").get_dtype() == "complex128"


def test_metadata_is_none_where_there_is_none(tmp_path: Path, path: Path) -> None:
    flashpack.save_file({"a": torch.ones(1)}, path)
    other = tmp_path / "none.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, other)
    for file in (path, other):
        assert flashpack.open(file).metadata() is None


@pytest.mark.parametrize("framework", ["", "tensorflow", "PT"])
def test_other_frameworks_are_refused_by_name(packed: Path, framework: str) -> None:
    with pytest.raises(ValueError, match=f"framework '{framework}'"):
        flashpack.open(packed, framework)


# Files in memory


class Trickle(io.RawIOBase):
    """An object with `read` and nothing else, which gives a little at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 1000) if size >= 0 else 1000)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, io.BytesIO, Trickle])
def test_files_in_memory_load(either: Path, wrap: Any) -> None:
    data = either.read_bytes()
    assert_same(flashpack.load(wrap(data)), TENSORS)


@pytest.mark.parametrize("wrap", [io.BytesIO, Trickle])
def test_objects_with_read_load(either: Path, wrap: Any) -> None:
    data = either.read_bytes()
    assert_same(flashpack.load_file(wrap(data)), TENSORS)
    with flashpack.open(wrap(data)) as file:
        part = file.get_slice("torch.float32")
        assert_same(file.get_tensors(), TENSORS)
        assert bits(part[1:2]) == bits(TENSORS["torch.float32"][1:2])
    assert bits(part[1:2]) == bits(TENSORS["torch.float32"][1:2]), "a slice outlives its handle"


def test_open_files_are_read_from_where_they_stand(packed: Path) -> None:
    data = packed.read_bytes()
    packed.write_bytes(b"header" + data)
    with packed.open("rb") as file:
        file.seek(len(b"header"))
        assert_same(flashpack.load_file(file), TENSORS)


def test_tensors_of_a_file_in_memory_are_theirs_alone(packed: Path) -> None:
    data = bytearray(packed.read_bytes())
    loaded = flashpack.load(data)
    loaded["torch.float32"].zero_()
    assert_same(flashpack.load(bytes(data)), TENSORS)
    data[:] = bytes(len(data))
    assert_same(loaded | {"torch.float32": TENSORS["torch.float32"]}, TENSORS)


def test_damage_in_memory_is_found(packed: Path) -> None:
    flip_byte(packed, 0)
    with pytest.raises(flashpack.ChecksumError, match=r"^<BytesIO>: "):
        flashpack.load(packed.read_bytes())
    with packed.open("rb") as file, pytest.raises(flashpack.ChecksumError) as caught:
        flashpack.load(file)
    assert str(caught.value).startswith(f"{packed}: ")


def test_save_gives_the_bytes_of_the_file(packed: Path) -> None:
    assert flashpack.save(TENSORS, {"format": "pt", "step": "7"}) == packed.read_bytes()


# Models


class Tied(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4, dtype=dtype)
        self.other = nn.Linear(4, 4, dtype=dtype)
        self.other.weight = self.one.weight
        self.norm = nn.BatchNorm1d(4)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_model_does_what_safetensors_does(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = Tied()
    safetensors.torch.save_model(saved, str(tmp_path / "model.safetensors"))
    flashpack.save_model(saved, tmp_path / "model.flashpack", {"step": "7"})
    expected, ours, through = Tied(dtype), Tied(dtype), Tied(dtype)
    outcome = safetensors.torch.load_model(expected, tmp_path / "model.safetensors")
    assert flashpack.load_model(ours, tmp_path / "model.flashpack") == outcome == (set(), [])
    assert flashpack.load_model(through, tmp_path / "model.safetensors", True, "cpu") == outcome
    assert_same(state(ours), state(expected))
    assert_same(state(through), state(expected))
    assert ours.one.weight is ours.other.weight
    assert flashpack.open(tmp_path / "model.flashpack").metadata() == {"step": "7"}


def test_load_model_reports_what_does_not_fit(tmp_path: Path) -> None:
    safetensors.torch.save_model(nn.Linear(4, 4), str(tmp_path / "model.safetensors"))
    model = nn.Sequential(nn.Linear(4, 4))
    before = state(model)
    with pytest.raises(ValueError, match=r"0\.weight"):
        flashpack.load_model(model, tmp_path / "model.safetensors")
    expected = safetensors.torch.load_model(model, tmp_path / "model.safetensors", strict=False)
    missing, unexpected = flashpack.load_model(model, tmp_path / "model.safetensors", strict=False)
    assert (missing, sorted(unexpected)) == (expected[0], sorted(expected[1]))
    assert_same(state(model), before)
