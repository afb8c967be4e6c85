"""Loading what is damaged or cannot be read, and from many threads and processes at once."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import flashpack
import pytest
import torch
from flashpack import deserialization
from helpers import (
    MIB,
    as_nobody,
    assert_same,
    bits,
    flip_byte,
    listing,
    noise,
    place_of,
    read_footer,
    read_payload,
    several_chunks,
    without_checksums,
    write_file,
)
from torch import Tensor, nn

BOTH = pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return several_chunks()


@pytest.fixture
def packed(tensors: dict[str, Tensor], path: Path) -> Path:
    flashpack.save_file(tensors, path)
    return path


# Damage


@pytest.fixture
def damaged(packed: Path) -> Path:
    """A byte of `weight` in chunk 2 is not what was written."""
    assert place_of(packed, "weight") == (0, 3 * MIB)
    flip_byte(packed, 2 * MIB + 17)
    return packed


@pytest.mark.parametrize(("eager", "verify"), [(True, None), (True, True), (False, True), (None, True)])
def test_damage_is_noticed(eager: bool | None, verify: bool | None, damaged: Path) -> None:
    with pytest.raises(
        flashpack.ChecksumError, match=r"chunk 2 is damaged, bytes 2097152\.\.3145728"
    ) as caught:
        flashpack.load_file(damaged, eager=eager, verify=verify)
    assert str(caught.value).startswith(f"{damaged}: ")
    assert '"weight"' in str(caught.value)


@pytest.mark.parametrize(("eager", "verify"), [(None, None), (False, None), (False, False), (True, False)])
def test_damage_is_not_looked_for(
    eager: bool | None, verify: bool | None, damaged: Path, tensors: dict[str, Tensor]
) -> None:
    loaded = flashpack.load_file(damaged, eager=eager, verify=verify)
    wrong = bits(loaded["weight"])
    right = bits(tensors["weight"])
    assert [at for at in range(2 * MIB, 2 * MIB + 100) if wrong[at] != right[at]] == [2 * MIB + 17]
    assert bits(loaded["half"]) == bits(tensors["half"])


@BOTH
def test_damage_elsewhere_does_not_matter(eager: bool, damaged: Path, tensors: dict[str, Tensor]) -> None:
    loaded = flashpack.load_file(damaged, names=["half"], eager=eager, verify=True)
    assert bits(loaded["half"]) == bits(tensors["half"])


VERIFIERS: dict[str, Callable[[Path], object]] = {
    "verify_file": flashpack.verify_file,
    "open": lambda path: flashpack.open(path, verify=True),
    "blocks": lambda path: deserialization.read_flashpack_file(path, eager=True),
}


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_damage_is_noticed_by_every_verifier(verifier: str, damaged: Path) -> None:
    with pytest.raises(flashpack.ChecksumError, match="chunk 2"):
        VERIFIERS[verifier](damaged)


def test_damage_in_the_padding_is_found_by_verify_file(path: Path) -> None:
    flashpack.save_file({"a": noise(torch.uint8, (3,)), "b": noise(torch.float64, (2,))}, path)
    flip_byte(path, 1000)
    with pytest.raises(flashpack.ChecksumError, match="chunk 0"):
        flashpack.verify_file(path)


def test_every_byte_of_the_payload_counts(path: Path) -> None:
    flashpack.save_file({"a": noise(torch.uint8, (200,))}, path)
    sound = path.read_bytes()
    for at in range(200):
        flip_byte(path, at)
        with pytest.raises(flashpack.ChecksumError):
            flashpack.load_file(path, eager=True)
        path.write_bytes(sound)
    flashpack.load_file(path, eager=True)


def swap_names(footer: dict) -> None:
    one, two = footer["index"][:2]
    one["name"], two["name"] = two["name"], one["name"]


def transpose(footer: dict) -> None:
    footer["index"][0]["shape"].reverse()


def rewrite_metadata(footer: dict) -> None:
    footer["metadata"]["licence"] = "none"


def rewrite_a_digest(footer: dict) -> None:
    footer["checksums"]["digests"] = "0" * 16


@pytest.mark.parametrize("edit", [swap_names, transpose, rewrite_metadata, rewrite_a_digest])
def test_a_changed_index_is_noticed_even_lazily(edit: Callable[[dict], None], path: Path) -> None:
    flashpack.save_file({"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}, path, {"licence": "MIT"})
    footer = read_footer(path)
    edit(footer)
    write_file(path, read_payload(path), footer)
    for door in (flashpack.load_file, flashpack.get_flashpack_file_metadata, flashpack.verify_file):
        with pytest.raises(flashpack.ChecksumError) as caught:
            door(path)
        assert str(caught.value).startswith(f"{path}: ")
    assert flashpack.is_flashpack_file(path) is False


def test_a_file_without_checksums(packed: Path, tensors: dict[str, Tensor]) -> None:
    without_checksums(packed)
    for eager in (False, True):
        assert_same(flashpack.load_file(packed, eager=eager), tensors)
        with pytest.raises(ValueError, match="holds no checksums") as caught:
            flashpack.load_file(packed, eager=eager, verify=True)
        assert str(packed) in str(caught.value)
    assert flashpack.verify_file(packed).verified_bytes == 0


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(3), "b": torch.tensor(1)}, path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 61), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(flashpack.FlashPackError) as caught:
            flashpack.load_file(path)
        assert str(path) in str(caught.value)


def test_a_file_cut_at_the_front_is_refused(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(30)}, path)
    whole = path.read_bytes()
    for cut in (1, 4, 60, 120):
        path.write_bytes(whole[cut:])
        with pytest.raises(flashpack.FlashPackError):
            flashpack.load_file(path)


def test_noise_is_refused(path: Path) -> None:
    for seed in range(50):
        path.write_bytes(bits(noise(torch.uint8, (seed * 7,), seed)))
        assert flashpack.is_flashpack_file(path) is False


# Errors of the system

READERS: dict[str, Callable[[Path], object]] = {
    "load_file": flashpack.load_file,
    "open": flashpack.open,
    "assign_from_file": lambda path: flashpack.assign_from_file(nn.Linear(2, 2), path, strict_params=False),
    "verify_file": flashpack.verify_file,
}
DOORS: dict[str, Callable[[Path], object]] = {
    **READERS,
    "load_file-eager": lambda path: flashpack.load_file(path, eager=True),
    "load_file-verify": lambda path: flashpack.load_file(path, verify=True),
    "metadata": flashpack.get_flashpack_file_metadata,
    "is_flashpack_file": flashpack.is_flashpack_file,
    "read_flashpack_file": deserialization.read_flashpack_file,
    "revert_from_file": deserialization.revert_from_file,
}
EVERY_DOOR = pytest.mark.parametrize("door", DOORS)


@EVERY_DOOR
@pytest.mark.parametrize(
    ("name", "kind", "number"),
    [
        ("missing", FileNotFoundError, errno.ENOENT),
        ("fifo", OSError, errno.EIO),
        ("file/inside", NotADirectoryError, errno.ENOTDIR),
        ("loop", OSError, errno.ELOOP),
        ("x" * 300, OSError, errno.ENAMETOOLONG),
    ],
)
def test_what_cannot_be_read(name: str, kind: type[OSError], number: int, door: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    if door == "is_flashpack_file" and kind in (FileNotFoundError, NotADirectoryError):
        assert not flashpack.is_flashpack_file(tmp_path / name)
        return
    with pytest.raises(kind) as caught:
        DOORS[door](tmp_path / name)
    assert caught.value.errno == number
    assert caught.value.filename == str(tmp_path / name)
    assert "[flashpack:" not in str(caught.value)
    assert str(caught.value).count(str(tmp_path / name)) == 1


@EVERY_DOOR
def test_a_folder_without_weights(door: str, tmp_path: Path) -> None:
    if door == "is_flashpack_file":
        assert not flashpack.is_flashpack_file(tmp_path)
        return
    one_file = door == "metadata"
    with pytest.raises(IsADirectoryError if one_file else FileNotFoundError) as caught:
        DOORS[door](tmp_path)
    assert caught.value.filename == str(tmp_path)
    assert one_file or "No .flashpack or .safetensors weights in the folder" in str(caught.value)


@EVERY_DOOR
def test_a_file_without_permission(door: str, packed: Path) -> None:
    packed.chmod(0)
    with as_nobody(), pytest.raises(PermissionError) as caught:
        DOORS[door](packed)
    assert caught.value.errno == errno.EACCES
    assert caught.value.filename == str(packed)


@EVERY_DOOR
def test_text_that_is_no_path(door: str) -> None:
    for text in ("", "a\0b", "\ud800"):
        with pytest.raises(ValueError, match="path"):
            DOORS[door](text)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        DOORS[door](b"bytes")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        DOORS[door](7)  # type: ignore[arg-type]


def test_paths_in_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ünïcode \U0001f512 [flashpack:{}] \n.flashpack"
    flashpack.save_file({"a": torch.ones(1)}, path)
    link = tmp_path / "link"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for spelling in (path, str(path), path.name, link, f"./{path.name}"):
        assert_same(flashpack.load_file(spelling), {"a": torch.ones(1)})
    flip_byte(path, 0)
    with pytest.raises(flashpack.ChecksumError) as caught:
        flashpack.load_file(path, eager=True)
    assert str(caught.value).startswith(f"{path}: chunk 0")


# The environment

MALFORMED = [
    ("FLASHPACK_CPU_PARALLEL_READ", "maybe"),
    ("FLASHPACK_PARALLEL_READ", "2"),
    ("FLASHPACK_NO_THREAD_CLAMP", "-1"),
    ("FLASHPACK_READ_THREADS", "0"),
    ("FLASHPACK_READ_THREADS", "many"),
    ("FLASHPACK_READ_THREADS", "1.5"),
    ("FLASHPACK_READ_CHUNK_BYTES", "4095"),
    ("FLASHPACK_READ_CHUNK_BYTES", "8MiB"),
    ("FLASHPACK_READ_CHUNK_BYTES", "99999999999999999999"),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("name", "value"), MALFORMED)
def test_a_malformed_variable_is_named(
    name: str, value: str, reader: str, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name) as caught:
        READERS[reader](packed)
    assert value in str(caught.value)
    assert not isinstance(caught.value, flashpack.FlashPackError)


# Threads and processes


@BOTH
def test_sixteen_threads_at_once(eager: bool, packed: Path, tensors: dict[str, Tensor]) -> None:
    together = Barrier(16)

    def load(number: int) -> None:
        together.wait()
        loaded = flashpack.load_file(packed, eager=eager)
        assert_same(loaded, tensors)
        loaded["bytes"].fill_(number)
        assert loaded["bytes"].eq(number).all()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(load, range(16)))


def test_threads_that_save_and_load_one_path(path: Path) -> None:
    states = [{"a": torch.full((1000,), float(number))} for number in range(4)]
    flashpack.save_file(states[0], path)

    def save(number: int) -> None:
        for _ in range(5):
            flashpack.save_file(states[number], path)

    def load(_: int) -> None:
        for _ in range(20):
            values = flashpack.load_file(path, eager=True)["a"].unique().tolist()
            assert len(values) == 1

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, number) for number in range(4) for work in (save, load)]:
            future.result()
    assert listing(path.parent) == {path.name}


def in_a_fork(work: Callable[[], None]) -> None:
    """Run `work` in a forked child; its failure is this process's."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 (a child must never return into pytest)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@BOTH
def test_a_fork_sees_its_own_copy(eager: bool, packed: Path, tensors: dict[str, Tensor]) -> None:
    loaded = flashpack.load_file(packed, eager=eager)

    def child() -> None:
        assert bits(loaded["weight"]) == bits(tensors["weight"])
        loaded["bytes"].data.copy_(torch.zeros(1000, dtype=torch.uint8))
        assert bits(flashpack.load_file(packed, eager=True)["half"]) == bits(tensors["half"])

    in_a_fork(child)
    assert_same(loaded, tensors)
