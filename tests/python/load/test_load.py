"""Loading: lazy and eager memory, selection, damage, the environment, errors, threads and forks."""

from __future__ import annotations

from pathlib import Path

import flashpack
import pytest
import torch
from flashpack import deserialization
from helpers import (
    assert_same,
    bits,
    bytes_read,
    flip_byte,
    mapped_bytes,
    noise,
    place_of,
    read_footer,
    read_payload,
    several_chunks,
    write_file,
)
from torch import Tensor

BOTH = pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return several_chunks()


@pytest.fixture
def packed(tensors: dict[str, Tensor], path: Path) -> Path:
    flashpack.save_file(tensors, path)
    return path


# Memory


def test_lazy_is_a_mapping_that_reads_nothing(packed: Path) -> None:
    before = bytes_read()
    loaded = flashpack.load_file(packed)
    assert bytes_read() - before < 256 << 10
    assert mapped_bytes(packed) == 0
    loaded["half"].sum()
    assert mapped_bytes(packed) >= loaded["half"].nbytes
    places = {loaded[name].data_ptr() - place_of(packed, name)[0] for name in ("bytes", "half", "weight")}
    assert len(places) == 1, "they lie in one mapping as in the file"


def test_eager_reads_everything_and_keeps_no_mapping(packed: Path) -> None:
    before = bytes_read()
    loaded = flashpack.load_file(packed, eager=True)
    assert bytes_read() - before >= len(read_payload(packed))
    assert mapped_bytes(packed) is None
    assert loaded


@BOTH
def test_every_bit(eager: bool, packed: Path, tensors: dict[str, Tensor]) -> None:
    loaded = flashpack.load_file(packed, eager=eager)
    assert_same(loaded, tensors)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in loaded.values())


@BOTH
def test_tensors_are_writable_and_private(eager: bool, packed: Path, tensors: dict[str, Tensor]) -> None:
    on_disk = packed.read_bytes()
    first, second = (flashpack.load_file(packed, eager=eager) for _ in range(2))
    for tensor in first.values():
        tensor.zero_()
    assert packed.read_bytes() == on_disk
    assert_same(second, tensors)
    assert_same(flashpack.load_file(packed, eager=eager), tensors)
    assert all(not tensor.any() for tensor in first.values())


@BOTH
def test_ties_share_memory(eager: bool, packed: Path) -> None:
    loaded = flashpack.load_file(packed, eager=eager)
    loaded["tied"].fill_(7)
    assert loaded["weight"].eq(7).all()
    assert loaded["weight"].data_ptr() == loaded["tied"].data_ptr()


@BOTH
def test_one_tensor_keeps_the_memory_alive(eager: bool, packed: Path, tensors: dict[str, Tensor]) -> None:
    kept = flashpack.load_file(packed, eager=eager)["half"]
    for _ in range(3):
        flashpack.load_file(packed, eager=eager)
    assert bits(kept) == bits(tensors["half"])


def test_letting_go_of_every_tensor_ends_the_mapping(packed: Path) -> None:
    loaded = flashpack.load_file(packed)
    view = loaded["half"][5:9]
    del loaded
    assert mapped_bytes(packed) is not None
    del view
    assert mapped_bytes(packed) is None


@BOTH
def test_the_tensors_outlive_the_file(eager: bool, packed: Path, tensors: dict[str, Tensor]) -> None:
    loaded = flashpack.load_file(packed, eager=eager)
    packed.unlink()
    assert_same(loaded, tensors)


def test_a_mapping_survives_the_replacement_of_its_file(packed: Path, tensors: dict[str, Tensor]) -> None:
    loaded = flashpack.load_file(packed)
    flashpack.save_file({"weight": torch.zeros(10)}, packed)
    assert_same(loaded, tensors)
    assert_same(flashpack.load_file(packed), {"weight": torch.zeros(10)})


def test_tensors_loaded_in_inference_mode_are_ordinary(packed: Path) -> None:
    with torch.inference_mode():
        loaded = flashpack.load_file(packed)
    assert not any(tensor.is_inference() for tensor in loaded.values())


def test_a_block_that_the_file_leaves_unaligned(path: Path) -> None:
    flashpack.save_file({"a": noise(torch.uint8, (3,)), "b": noise(torch.float64, (2,))}, path)
    footer, payload = read_footer(path), read_payload(path)
    shifted = {**footer, "total_payload_bytes": 3 + 16}
    shifted["macroblocks"] = [footer["macroblocks"][0], {**footer["macroblocks"][1], "offset_bytes": 3}]
    del shifted["checksums"]
    odd = write_file(path.with_name("odd.flashpack"), payload[:3] + payload[-16:], shifted)
    for eager in (False, True):
        loaded = flashpack.load_file(odd, eager=eager)
        assert_same(loaded, flashpack.load_file(path))
        assert loaded["b"].data_ptr() % 8 == 0


# Devices


def test_device_arguments(packed: Path, tensors: dict[str, Tensor]) -> None:
    assert_same(flashpack.load_file(packed, torch.device("cpu")), tensors)
    on_meta = flashpack.load_file(packed, "meta")
    assert {name: (tensor.shape, tensor.dtype, tensor.is_meta) for name, tensor in on_meta.items()} == {
        name: (tensor.shape, tensor.dtype, True) for name, tensor in tensors.items()
    }
    with pytest.raises(RuntimeError):
        flashpack.load_file(packed, "no such device")


# Selection


@BOTH
def test_names_select_and_order(eager: bool, packed: Path, tensors: dict[str, Tensor]) -> None:
    loaded = flashpack.load_file(packed, names=["scalar", "weight", "empty", "scalar"], eager=eager)
    assert list(loaded) == ["scalar", "weight", "empty"]
    assert_same(loaded, {name: tensors[name] for name in loaded})


@BOTH
def test_no_names_no_tensors(eager: bool, packed: Path) -> None:
    assert flashpack.load_file(packed, names=[], eager=eager) == {}


def test_eager_reads_little_for_little(packed: Path) -> None:
    packed.read_bytes()  # of a file that is not in the page cache, a load takes a sample first
    before = bytes_read()
    flashpack.load_file(packed, names=["bytes"], eager=True)
    assert bytes_read() - before < 512 << 10


@BOTH
def test_an_unknown_name(eager: bool, packed: Path) -> None:
    with pytest.raises(ValueError, match='holds no tensor named "nobody"') as caught:
        flashpack.load_file(packed, names=["weight", "nobody"], eager=eager)
    assert str(packed) in str(caught.value)


@pytest.mark.parametrize("names", ["weight", [1], ["\ud800"]])
def test_names_must_be_a_list_of_texts(names: list[str], packed: Path) -> None:
    with pytest.raises(ValueError, match="names must"):
        flashpack.load_file(packed, names=names)


# The environment


@pytest.fixture
def damaged(packed: Path) -> Path:
    """Only eager loads compare digests by themselves."""
    flip_byte(packed, 0)
    return packed


@pytest.mark.parametrize("value", ["1", "true", " Yes ", "ON"])
def test_the_environment_can_make_loads_eager(
    value: str, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHPACK_CPU_PARALLEL_READ", value)
    with pytest.raises(flashpack.ChecksumError):
        flashpack.load_file(damaged)
    loaded = flashpack.load_file(damaged, verify=False)
    assert mapped_bytes(damaged) is None
    loaded = flashpack.load_file(damaged, eager=False)
    assert mapped_bytes(damaged) is not None
    assert loaded


@pytest.mark.parametrize("value", ["0", "false", "No", "", " "])
def test_the_environment_can_leave_loads_lazy(
    value: str, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHPACK_CPU_PARALLEL_READ", value)
    loaded = flashpack.load_file(damaged)
    assert mapped_bytes(damaged) is not None
    assert loaded


@pytest.mark.parametrize("threads", ["1", "2", "64"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLASHPACK_READ_CHUNK_BYTES", "4096"),
        ("FLASHPACK_READ_CHUNK_BYTES", "1000003"),
        ("FLASHPACK_PARALLEL_READ", "0"),
        ("FLASHPACK_NO_THREAD_CLAMP", "1"),
    ],
)
def test_the_tuning_knobs_do_not_change_the_result(
    threads: str,
    name: str,
    value: str,
    packed: Path,
    tensors: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASHPACK_READ_THREADS", threads)
    monkeypatch.setenv(name, value)
    for verify in (False, True):
        assert_same(flashpack.load_file(packed, eager=True, verify=verify), tensors)


# Blocks, as 0.4.5 reads


@BOTH
def test_blocks_and_their_views(eager: bool, packed: Path, tensors: dict[str, Tensor]) -> None:
    storage, footer = deserialization.read_flashpack_file(packed, eager=eager)
    assert footer == read_footer(packed)
    assert len(storage) == len(footer["macroblocks"]) == len(storage.blocks)
    assert storage.device == torch.device("cpu")
    for number, block in enumerate(footer["macroblocks"]):
        assert storage.block(number).shape == (block["length_elems"],)
        assert storage.block(number).dtype == getattr(torch, block["dtype"])
    views = dict(deserialization.iterate_from_flash_tensor(storage, footer))
    assert_same(views, tensors)
    assert views["weight"].data_ptr() == views["tied"].data_ptr()


def test_iterating_leaves_out_what_is_ignored(packed: Path) -> None:
    storage, footer = deserialization.read_flashpack_file(packed)
    kept = deserialization.iterate_from_flash_tensor(
        storage, footer, ignore_names=["tied"], ignore_prefixes=["sca", "hal"], ignore_suffixes=["ytes"]
    )
    assert [name for name, _ in kept] == ["weight", "empty"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"macroblock": 9}, "macroblock"),
        ({"macroblock": -1}, "macroblock"),
        ({"offset": 1}, "misaligned"),
        ({"offset": 1 << 40}, "outside its block"),
        ({"length": -1}, "outside its block"),
        ({"shape": [3]}, "does not have"),
    ],
)
def test_iterating_checks_a_hand_made_index(change: dict[str, object], message: str, packed: Path) -> None:
    storage, footer = deserialization.read_flashpack_file(packed)
    footer["index"][-1 if "shape" in change else 0].update(change)
    views = deserialization.iterate_from_flash_tensor(storage, footer)
    with pytest.raises(ValueError, match=message):
        next(views)


@pytest.mark.parametrize("eager", [False, True])
def test_loaded_tensors_are_saved_and_shared_one_by_one(path: Path, eager: bool) -> None:
    """Each has a storage of its own: torch.save takes several dtypes, and a small one stays small."""
    tensors = {"large": noise(torch.float32, (1000, 1000)), "small": noise(torch.int8, (3,))}
    flashpack.save_file(tensors, path)
    loaded = flashpack.load_file(path, eager=eager)
    torch.save(loaded, path.with_suffix(".pt"))
    assert_same(torch.load(path.with_suffix(".pt")), tensors)
    torch.save(loaded["small"], path.with_suffix(".small"))
    assert path.with_suffix(".small").stat().st_size < 10_000


def test_records_without_elements_may_lie_anywhere() -> None:
    footer = {"align_bytes": 128, "index": [{"name": "a", "offset": 1001, "length": 0, "shape": [0, 4]}]}
    views = dict(deserialization.iterate_from_flash_tensor(torch.ones(8), footer))
    assert_same(views, {"a": torch.empty(0, 4)})
    footer["index"][0]["shape"] = [4]
    with pytest.raises(ValueError, match="does not have 0 elements"):
        list(deserialization.iterate_from_flash_tensor(torch.ones(8), footer))


def test_a_handle_shows_what_was_written_to_its_tensors(path: Path) -> None:
    flashpack.save_file({"a": torch.zeros(2)}, path)
    with flashpack.open(path) as file, flashpack.open(path) as other:
        file.get_tensor("a").fill_(1)
        assert file.get_tensor("a").eq(1).all()
        assert other.get_tensor("a").eq(0).all()
    assert flashpack.load_file(path)["a"].eq(0).all()
