"""Loading: lazy and eager memory, selection, damage, the environment, errors, threads and forks."""

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
    bytes_read,
    flip_byte,
    listing,
    noise,
    place_of,
    read_footer,
    read_payload,
    without_checksums,
    write_file,
)
from torch import Tensor, nn

BOTH = pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Several chunks of payload, several dtypes, a tie."""
    weight = noise(torch.float32, (3 * MIB // 4,), seed=1)
    return {
        "weight": weight,
        "tied": weight,
        "half": noise(torch.float16, (MIB // 2,), seed=2),
        "bytes": noise(torch.uint8, (1000,), seed=3),
        "scalar": noise(torch.float64, seed=4),
        "empty": torch.empty(0, 5),
    }


@pytest.fixture
def packed(tensors: dict[str, Tensor], path: Path) -> Path:
    flashpack.save_file(tensors, path)
    return path


def resident(path: Path) -> int | None:
    """Bytes of this process's mappings of the file that are in memory; None without a mapping."""
    total, mapped, inside = 0, False, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):
            inside = rest.endswith(str(path))
            mapped |= inside
        elif inside and key == "Rss:":
            total += int(rest.split()[0]) * 1024
    return total if mapped else None


# Memory


def test_lazy_is_a_mapping_that_reads_nothing(packed: Path) -> None:
    before = bytes_read()
    loaded = flashpack.load_file(packed)
    assert bytes_read() - before < 256 << 10
    assert resident(packed) == 0
    loaded["half"].sum()
    assert resident(packed) >= loaded["half"].nbytes
    places = {loaded[name].data_ptr() - place_of(packed, name)[0] for name in ("bytes", "half", "weight")}
    assert len(places) == 1, "they lie in one mapping as in the file"


def test_eager_reads_everything_and_keeps_no_mapping(packed: Path) -> None:
    before = bytes_read()
    loaded = flashpack.load_file(packed, eager=True)
    assert bytes_read() - before >= len(read_payload(packed))
    assert resident(packed) is None
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
    assert resident(packed) is not None
    del view
    assert resident(packed) is None


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


# The environment


@pytest.mark.parametrize("value", ["1", "true", " Yes ", "ON"])
def test_the_environment_can_make_loads_eager(
    value: str, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHPACK_CPU_PARALLEL_READ", value)
    with pytest.raises(flashpack.ChecksumError):
        flashpack.load_file(damaged)
    loaded = flashpack.load_file(damaged, verify=False)
    assert resident(damaged) is None
    loaded = flashpack.load_file(damaged, eager=False)
    assert resident(damaged) is not None
    assert loaded


@pytest.mark.parametrize("value", ["0", "false", "No", "", " "])
def test_the_environment_can_leave_loads_lazy(
    value: str, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHPACK_CPU_PARALLEL_READ", value)
    loaded = flashpack.load_file(damaged)
    assert resident(damaged) is not None
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
READERS: dict[str, Callable[[Path], object]] = {
    "load_file": flashpack.load_file,
    "open": flashpack.open,
    "assign_from_file": lambda path: flashpack.assign_from_file(nn.Linear(2, 2), path, strict_params=False),
    "verify_file": flashpack.verify_file,
}


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


# Errors of the system

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
    with pytest.raises(kind) as caught:
        DOORS[door](tmp_path / name)
    assert caught.value.errno == number
    assert caught.value.filename == str(tmp_path / name)
    assert "[flashpack:" not in str(caught.value)
    assert str(caught.value).count(str(tmp_path / name)) == 1


@EVERY_DOOR
def test_a_folder_without_weights(door: str, tmp_path: Path) -> None:
    one_file = door in ("metadata", "is_flashpack_file")
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


# The handle


def test_the_handle(packed: Path, tensors: dict[str, Tensor]) -> None:
    with flashpack.open(packed) as file:
        assert file.keys() == [record["name"] for record in read_footer(packed)["index"]]
        assert len(file) == len(tensors)
        assert "weight" in file
        assert "nobody" not in file
        assert 3 not in file
        assert_same({name: file.get_tensor(name) for name in tensors}, tensors)
        assert file.metadata() == {}
        assert resident(packed) is not None


def test_the_handle_reads_nothing_but_what_is_asked_for(packed: Path, tensors: dict[str, Tensor]) -> None:
    with flashpack.open(packed) as file:
        assert resident(packed) == 0
        part = file.get_slice("weight")
        assert part.get_shape() == [3 * MIB // 4]
        assert part.get_dtype() == torch.float32
        assert bits(part[5:9]) == bits(tensors["weight"][5:9])
        assert resident(packed) == 0  # slices are read
        assert bits(file.get_tensor("weight")[5:9]) == bits(tensors["weight"][5:9])
        assert 0 < resident(packed) <= MIB  # the system maps what lies around a page, too


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
    assert resident(packed) is None


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
