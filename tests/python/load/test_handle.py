"""flashpack.open: a file's tensors one by one."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import flashpack
import pytest
import torch
from helpers import MIB, assert_same, bits, flip_byte, mapped_bytes, noise, read_footer, several_chunks
from processes import python, succeed
from torch import Tensor


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return several_chunks()


@pytest.fixture
def packed(tensors: dict[str, Tensor], path: Path) -> Path:
    flashpack.save_file(tensors, path)
    return path


@pytest.fixture
def damaged(packed: Path) -> Path:
    flip_byte(packed, 0)
    return packed


def test_the_handle(packed: Path, tensors: dict[str, Tensor]) -> None:
    with flashpack.open(packed) as file:
        assert file.keys() == [record["name"] for record in read_footer(packed)["index"]]
        assert len(file) == len(tensors)
        assert "weight" in file
        assert "nobody" not in file
        assert 3 not in file
        assert_same({name: file.get_tensor(name) for name in tensors}, tensors)
        assert file.metadata() is None
        assert mapped_bytes(packed) is not None


def test_the_handle_reads_nothing_but_what_is_asked_for(packed: Path, tensors: dict[str, Tensor]) -> None:
    with flashpack.open(packed) as file:
        assert mapped_bytes(packed) == 0
        part = file.get_slice("weight")
        assert part.get_shape() == [3 * MIB // 4]
        assert (part.shape, part.dtype, part.get_dtype()) == ((3 * MIB // 4,), torch.float32, "F32")
        assert bits(part[5:9]) == bits(tensors["weight"][5:9])
        assert mapped_bytes(packed) == 0  # slices are read
        assert bits(file.get_tensor("weight")[5:9]) == bits(tensors["weight"][5:9])
        assert 0 < mapped_bytes(packed) <= MIB  # the system maps what lies around a page, too


def test_slices_index_as_tensors_do(path: Path) -> None:
    cube = noise(torch.int32, (4, 5, 6))
    flashpack.save_file({"cube": cube}, path)
    with flashpack.open(path) as file:
        part = file.get_slice("cube")
        for index in (0, -1, slice(1, 3), (slice(None), 2), (..., slice(2, 5))):
            assert torch.equal(part[index], cube[index])
        with pytest.raises(IndexError):
            part[9]


def test_unknown_names_are_key_errors(packed: Path) -> None:
    with flashpack.open(packed) as file:
        for get in (file.get_tensor, file.get_slice):
            with pytest.raises(KeyError, match="nobody") as caught:
                get("nobody")
            assert str(packed) in str(caught.value)


def test_a_closed_handle_says_so_and_its_tensors_live_on(packed: Path, tensors: dict[str, Tensor]) -> None:
    file = flashpack.open(packed)
    kept = file.get_tensor("half")
    file.close()
    file.close()
    for use in (
        file.keys,
        file.metadata,
        lambda: file.get_tensor("half"),
        lambda: len(file),
        lambda: "half" in file,
    ):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert bits(kept) == bits(tensors["half"])
    del kept
    assert mapped_bytes(packed) is None


def test_the_handle_stays_on_the_file_it_opened(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(1)}, path, {"which": "first"})
    with flashpack.open(path) as file:
        flashpack.save_file({"b": torch.zeros(2)}, path, {"which": "second"})
        assert file.keys() == ["a"]
        assert_same({"a": file.get_tensor("a")}, {"a": torch.ones(1)})
        assert file.metadata() == {"which": "first"}


def test_handles_verify_on_request(damaged: Path) -> None:
    with flashpack.open(damaged) as file:
        assert file.get_tensor("weight").numel()
    with pytest.raises(flashpack.ChecksumError):
        flashpack.open(damaged, verify=True)


def test_a_handle_tells_what_it_holds(path: Path) -> None:
    flashpack.save_file({"a": torch.zeros(1000, dtype=torch.bfloat16), "b": torch.zeros(3)}, path)
    with flashpack.open(path) as file:
        assert repr(file) == f"<FlashPackFile {str(path)!r}: 2 tensors, 2.01 kB, bfloat16, float32>"
    assert repr(file) == f"<FlashPackFile {str(path)!r}: closed>"


def test_handles_are_copied_but_not_pickled(path: Path) -> None:
    flashpack.save_file({"a": torch.arange(10.0)}, path)
    file = flashpack.open(path)
    copied = copy.deepcopy(file)
    del file
    assert torch.equal(copied.get_slice("a")[2:5], torch.arange(2.0, 5.0))
    with pytest.raises(TypeError, match=r"cannot pickle .*model\.flashpack.* open it in the process"):
        pickle.dumps(copied)


FROM_A_CHILD = """
import os, sys
import flashpack, torch
from flashpack._files.opened import OpenModel
from flashpack._load.load import load_list

def opened(value):
    path = f"{sys.argv[1]}/{value}.flashpack"
    flashpack.save_file({"a": torch.tensor([value])}, path)
    return OpenModel(path)

def value(model):
    return load_list(model, ["a"], torch.device("cpu"), eager=True)[0].item()

before = opened(1.0)
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, opened(2.0).handle.numpy().tobytes())
    os._exit(0)
own = opened(3.0)
assert (value(before), value(own)) == (1.0, 3.0)
os.wait()
sent = opened(4.0)
sent.handle = torch.frombuffer(bytearray(os.read(reading, 100)), dtype=torch.int64)
try:
    value(sent)
except ValueError as error:
    print(error)
"""


def test_a_handle_of_a_child_process_is_none_of_this(tmp_path: Path) -> None:
    assert "comes from another process" in succeed(python("-c", FROM_A_CHILD, tmp_path))
