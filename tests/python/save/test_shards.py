"""Several files that load as one: written with max_shard_size, or listed, or as model hubs have them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack._core.text import parse_size
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file
from helpers import (
    DTYPES,
    MIB,
    assert_same,
    bits,
    dtype_id,
    flip_byte,
    listing,
    noise,
    read_footer,
    run_python,
)
from processes import python, succeed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

INDEX = "model.flashpack.index.json"


def names_of(count: int, suffix: str = "flashpack") -> list[str]:
    return [f"model-{number:05d}-of-{count:05d}.{suffix}" for number in range(1, count + 1)]


def kinds() -> dict[str, Tensor]:
    tensors = {
        f"{dtype_id(dtype)}.{number}": noise(dtype, (40 + number, 30), number)
        for number in range(4)
        for dtype in DTYPES
    }
    return {**tensors, "scalar": torch.tensor(2301), "none": torch.empty(0, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a set of shards."""
    flashpack.save_file(kinds(), tmp_path / "model.flashpack", {"step": "7"}, max_shard_size=25_000)
    return tmp_path


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.flashpack"))


# --- Loading. --------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[Path], Any]] = {
    "folder": lambda folder: folder,
    "index": lambda folder: folder / INDEX,
    "name": lambda folder: str(folder / "model.flashpack"),
    "list": shards_in,
    "tuple of text": lambda folder: tuple(map(str, shards_in(folder))),
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS)
LOADS: dict[str, Callable[[Any], Mapping[str, Tensor]]] = {
    "mapped": flashpack.load_file,
    "mapped, verified": lambda path: flashpack.load_file(path, eager=False, verify=True),
    "eager": lambda path: flashpack.load_file(path, eager=True),
    "names": lambda path: flashpack.load_file(path, names=list(kinds())[::-1]),
    "blocks": lambda path: dict(iterate_from_flash_tensor(*read_flashpack_file(path, eager=True))),
}


@EVERY_FORM
@pytest.mark.parametrize("direct", ["0", "1"])
@pytest.mark.parametrize("load", LOADS)
def test_every_form_loads(
    folder: Path, form: str, load: str, direct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHPACK_DIRECT_IO", direct)
    assert len(shards_in(folder)) > 3
    assert_same(LOADS[load](FORMS[form](folder)), kinds())


@EVERY_FORM
def test_a_handle(folder: Path, form: str) -> None:
    with flashpack.open(FORMS[form](folder)) as file:
        assert set(file.keys()) == set(kinds())
        assert file.metadata() == {"step": "7"}
        assert torch.equal(file.get_slice("int32.2")[3:5], kinds()["int32.2"][3:5])
    with pytest.raises(ValueError, match="is closed") as caught:
        file.keys()
    assert "\0" not in str(caught.value)


@EVERY_FORM
def test_reports(folder: Path, form: str) -> None:
    payload = sum(flashpack.verify_file(path).payload_bytes for path in shards_in(folder))
    place = FORMS[form](folder)
    checked = flashpack.verify_file(place)
    assert (checked.payload_bytes, checked.verified_bytes) == (payload, payload)
    told = flashpack.explain(place, eager=True)
    assert told.file_bytes == sum(path.stat().st_size for path in shards_in(folder))
    assert told.read_bytes == told.verified_bytes == payload
    assert "\0" not in str(told)
    flashpack.load_file(place, eager=True)
    report = flashpack.last_load()
    assert report is not None and report.bytes == payload


def test_one_budget_of_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DIRECT_IO": "1", "READ_THREADS": "2", "READ_CHUNK_BYTES": "4096"}.items():
        monkeypatch.setenv(f"FLASHPACK_{name}", value)
    flashpack.load_file(folder, eager=True)
    report = flashpack.last_load()
    assert report is not None and report.threads == 2


@pytest.mark.parametrize("form", ["folder", "index", "name"])
def test_the_ops_take_what_stands_for_shards(folder: Path, form: str) -> None:
    names, given = ["int8.0", "float32.3"], kinds()
    index = str(FORMS[form](folder))
    loaded = torch.ops.flashpack.load(index, names)
    assert all(bits(got) == bits(given[name]) for got, name in zip(loaded, names, strict=True))
    filled = [torch.zeros_like(given[name]) for name in names]
    model = torch.ops.flashpack.open(index)
    torch.ops.flashpack.fill(model, names, filled)
    assert all(bits(got) == bits(given[name]) for got, name in zip(filled, names, strict=True))
    assert_same(dict(zip(*torch.ops.flashpack.load.ignoring(model), strict=True)), given)


@EVERY_FORM
@pytest.mark.parametrize(
    "options", [{}, {"eager": True}, {"in_place": True}, {"keep_flash_ref_on_model": True}]
)
def test_into_a_model(tmp_path: Path, form: str, options: dict[str, bool]) -> None:
    original = nn.Sequential(nn.Linear(70, 50), nn.BatchNorm1d(50), nn.Linear(50, 9))
    flashpack.pack_to_file(original, tmp_path / "model.flashpack", max_shard_size="10KB")
    assert len(shards_in(tmp_path)) == 2
    model = nn.Sequential(nn.Linear(70, 50), nn.BatchNorm1d(50), nn.Linear(50, 9))
    flashpack.assign_from_file(model, FORMS[form](tmp_path), **options)
    assert_same(model.state_dict(), original.state_dict())
    wrong = nn.Sequential(nn.Linear(70, 51))
    with pytest.raises(ValueError, match="Could not assign") as caught:
        flashpack.assign_from_file(wrong, FORMS[form](tmp_path))
    assert "\0" not in str(caught.value)


def test_mapped_shards_outlive_what_loaded_them(folder: Path) -> None:
    loaded = flashpack.load_file(folder)
    kept = loaded.pop("float32.3")
    del loaded
    for path in shards_in(folder):
        path.unlink()
    kept.view(torch.uint8)[0] ^= 1
    kept.view(torch.uint8)[0] ^= 1
    assert bits(kept) == bits(kinds()["float32.3"])


@pytest.mark.parametrize("listed", [True, False], ids=["list", "folder"])
def test_safetensors_shards_of_a_hub(tmp_path: Path, listed: bool) -> None:
    parts = [{"a": noise(torch.bfloat16, (7, 5), 1)}, {"b": noise(torch.int64, (3,), 2), "c": torch.ones(())}]
    names = names_of(2, "safetensors")
    for name, part in zip(names, parts, strict=True):
        save_file(part, tmp_path / name, {"format": "pt"})
    weights = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    content = {"metadata": {"total_size": 98}, "weight_map": weights}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    place = [tmp_path / name for name in names] if listed else tmp_path
    assert_same(flashpack.load_file(place), {**parts[0], **parts[1]})
    assert_same(flashpack.load_file(place, eager=True), {**parts[0], **parts[1]})
    with pytest.raises(ValueError, match="holds no checksums"):
        flashpack.load_file(place, verify=True)


def test_a_list_may_mix_formats(tmp_path: Path) -> None:
    one, other = {"a": noise(torch.float16, (9,), 1)}, {"b": noise(torch.float16, (9,), 2)}
    save_file(one, tmp_path / "a.safetensors")
    flashpack.save_file(other, tmp_path / "b.flashpack")
    place = [tmp_path / "a.safetensors", tmp_path / "b.flashpack"]
    assert_same(flashpack.load_file(place), {**one, **other})
    assert_same(flashpack.load_file(place[:1]), one)


def test_flashpack_goes_before_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert flashpack.load_file(tmp_path)["a"] == 0
    flashpack.save_file({"a": torch.ones(1)}, tmp_path / "model.flashpack")
    assert flashpack.load_file(tmp_path)["a"] == 1


# --- What is refused. ------------------------------------------------------------------------------


def refused(place: Any, match: str, kind: type[Exception] = flashpack.FlashPackError) -> None:
    for load in (flashpack.load_file, flashpack.open, flashpack.verify_file, flashpack.explain):
        with pytest.raises(kind, match=match):
            load(place)


def test_a_missing_shard(folder: Path) -> None:
    gone = shards_in(folder)[1]
    gone.unlink()
    refused(folder, f"1 of .* shards are missing: .*{gone.name}")


def test_shards_without_their_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    refused(folder, "which of these is meant", ValueError)
    for path in shards_in(folder)[1:]:
        path.unlink()
    refused(folder, "one shard of several, and there is no index", ValueError)


def test_a_tensor_that_is_in_two_files(tmp_path: Path) -> None:
    for name in "ab":
        flashpack.save_file({name: torch.ones(1), "both": torch.ones(1)}, tmp_path / f"{name}.flashpack")
    place = [tmp_path / "a.flashpack", tmp_path / "b.flashpack"]
    refused(place, 'duplicate name "both": .*a.flashpack and .*b.flashpack both hold it')


def test_a_tensor_that_is_in_no_shard(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["absent"] = shards_in(folder)[0].name
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, '1 tensors of the index are missing from their shards, the first is "absent"')


@pytest.mark.parametrize("way", ["../{}", "{0.parent}/{0}", "sub/{}", "..\\{}"])
def test_an_index_that_leads_out_of_its_folder(folder: Path, way: str) -> None:
    shard = shards_in(folder)[0]
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace(shard.name, json.dumps(way.format(shard))[1:-1]))
    refused(folder, "is not a plain file name")


def test_a_half_written_set(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Another save of the same names died between two renames."""
    other = tmp_path_factory.mktemp("other")
    changed = {name: tensor.clone() for name, tensor in kinds().items()}
    flashpack.save_file(changed, other / "model.flashpack", max_shard_size=25_000)
    assert listing(folder) == listing(other)
    shutil.copyfile(shards_in(other)[0], shards_in(folder)[0])
    refused(folder, "belongs to another save than its index: the set was written only in part")


def test_damage_is_found_in_its_file(folder: Path) -> None:
    damaged = shards_in(folder)[2]
    flip_byte(damaged, 5)
    for place in (folder, shards_in(folder)):
        with pytest.raises(
            flashpack.ChecksumError, match=re.escape(f"{damaged}: chunk 0 is damaged, bytes 0..")
        ):
            flashpack.load_file(place, eager=True)


def test_nothing_to_load(tmp_path: Path) -> None:
    refused([], "the list of files is empty", ValueError)
    refused([tmp_path / "none.flashpack", tmp_path / "other"], "none.flashpack", FileNotFoundError)
    with pytest.raises(TypeError, match="not int"):
        flashpack.load_file(7)  # type: ignore[arg-type]


# --- Saving. ---------------------------------------------------------------------------------------


def test_shards_are_no_larger_than_asked(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    shards = shards_in(folder)
    assert [path.name for path in shards] == names_of(len(shards))
    assert listing(folder) == {INDEX, *names_of(len(shards))}
    sizes = {name: tensor.nbytes for name, tensor in kinds().items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert set(index["weight_map"]) == set(sizes)
    for path in shards:
        held = [record["name"] for record in read_footer(path)["index"]]
        assert sum(sizes[name] for name in held) <= 25_000
        assert all(index["weight_map"][name] == path.name for name in held)
        assert read_footer(path)["metadata"]["step"] == "7"


def test_what_fits_is_one_file(tmp_path: Path) -> None:
    flashpack.save_file(kinds(), tmp_path / "model.flashpack", max_shard_size="1GB")
    assert listing(tmp_path) == {"model.flashpack"}
    assert_same(flashpack.load_file(tmp_path), kinds())


def test_the_old_is_swept(folder: Path) -> None:
    path = folder / "model.flashpack"
    (folder / "model-00001-of-00002.txt").touch()
    (folder / "other-00001-of-00002.flashpack").touch()
    others = {"model-00001-of-00002.txt", "other-00001-of-00002.flashpack"}
    tensors = {"a": noise(torch.uint8, (MIB,), 1), "b": noise(torch.uint8, (MIB,), 2)}
    flashpack.save_file(tensors, path, max_shard_size="1MiB")
    assert listing(folder) == {INDEX, *names_of(2), *others}
    assert_same(flashpack.load_file(path), tensors)
    flashpack.save_file(tensors, path, max_shard_size="1GB")
    assert listing(folder) == {"model.flashpack", *others}
    flashpack.save_file(tensors, path, max_shard_size=MIB)
    assert listing(folder) == {INDEX, *names_of(2), *others}
    assert_same(flashpack.load_file(path), tensors)


@pytest.mark.parametrize("name", ["model.flashpack", "other.flashpack"])
def test_a_whole_file_goes_before_older_shards_of_its_name(tmp_path: Path, name: str) -> None:
    flashpack.save_file(kinds(), tmp_path / name, max_shard_size=25_000)
    flashpack.save_file({"new": torch.ones(3)}, tmp_path / name)
    for place in (tmp_path, tmp_path / name):
        assert_same(flashpack.load_file(place), {"new": torch.ones(3)})


TOO_LARGE_AT_LAST = """
import resource, signal, sys, torch, flashpack
tensors = flashpack.load_file(sys.argv[1], eager=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    tensors["z"] = torch.ones(1 << 20)
    flashpack.save_file(tensors, sys.argv[1], max_shard_size=20_000)
except OSError as error:
    print(error.errno)
"""


def test_a_failure_leaves_what_was_there(folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in listing(folder)}
    assert run_python(TOO_LARGE_AT_LAST, folder / "model.flashpack") == str(errno.EFBIG)
    assert {name: (folder / name).read_bytes() for name in listing(folder)} == before
    assert_same(flashpack.load_file(folder), kinds())


def test_a_mixture_is_refused_under_an_index_that_names_no_save(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["metadata"]["flashpack_set"]
    (folder / INDEX).write_text(json.dumps(index))
    assert_same(flashpack.load_file(folder), kinds())
    other = tmp_path_factory.mktemp("other")
    flashpack.save_file(kinds(), other / "model.flashpack", max_shard_size=25_000)
    shutil.copyfile(shards_in(other)[1], shards_in(folder)[1])
    refused(folder, "belongs to another save")


def test_names_that_no_index_can_hold_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"mod\xe8l.flashpack")
    with pytest.raises(ValueError, match="is not UTF-8, as the names of shards must be"):
        flashpack.save_file(kinds(), path, max_shard_size=25_000)
    assert not listing(tmp_path)
    flashpack.save_file(kinds(), path, max_shard_size="1GB")
    assert_same(flashpack.load_file(path), kinds())


def test_tied_tensors_stay_in_one_shard_and_tied(tmp_path: Path) -> None:
    first = noise(torch.float32, (100,), 1)
    tensors = {"first": first, **{f"t{number}": noise(torch.float32, (90,), number) for number in range(5)}}
    tensors |= {"tied": first, "viewed": first.view(10, 10)}
    flashpack.save_file(tensors, tmp_path / "model.flashpack", max_shard_size=500)
    index = json.loads((tmp_path / INDEX).read_text())
    assert len({index["weight_map"][name] for name in ("first", "tied", "viewed")}) == 1
    assert index["metadata"]["total_size"] == 4 * (100 + 5 * 90)
    loaded = flashpack.load_file(tmp_path)
    assert_same(loaded, tensors)
    assert loaded["tied"].data_ptr() == loaded["first"].data_ptr() == loaded["viewed"].data_ptr()


def test_a_cast_counts(tmp_path: Path) -> None:
    state = {f"t{number}": torch.ones(100) for number in range(4)}
    flashpack.pack_to_file(state, tmp_path / "model.flashpack", torch.float16, max_shard_size=400)
    index = json.loads((tmp_path / INDEX).read_text())
    assert (len(shards_in(tmp_path)), index["metadata"]["total_size"]) == (2, 800)
    assert all(tensor.dtype == torch.float16 for tensor in flashpack.load_file(tmp_path).values())


def test_the_destination_may_be_no_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        flashpack.save_file(kinds(), tmp_path, max_shard_size=25_000)
    assert not listing(tmp_path)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500 MiB", 500 << 20), ("1.5kb", 1500), ("10B", 10), (12, 12), ("2TiB", 2 << 40)],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("size", ["", "5", "GB", "-1GB", "0B", "1e3B", "5 GBs", 0, -5, True, 1.5])
def test_no_sizes(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"not {size!r}")):
        flashpack.save_file(kinds(), tmp_path / "model.flashpack", max_shard_size=size)
    assert not listing(tmp_path)


# --- Converting. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float8_e4m3fn"])
def test_conversion_to_shards_and_back(tmp_path: Path, dtype: str | None) -> None:
    given = {f"t{number}": torch.randn(50, 20) for number in range(7)} | {"steps": torch.tensor([3])}
    save_file(given, tmp_path / "source.safetensors", {"format": "pt"})
    made = convert_to_flashpack(
        tmp_path / "source.safetensors", tmp_path / "model.flashpack", dtype, max_shard_size=9000
    )
    shards = {None: 4, "bfloat16": 2}.get(dtype, 0)
    assert made == str(tmp_path / (INDEX if shards else "model.flashpack"))
    assert len(shards_in(tmp_path)) == shards
    wanted = {
        name: tensor.to(getattr(torch, dtype)) if dtype and tensor.is_floating_point() else tensor
        for name, tensor in given.items()
    }
    assert_same(flashpack.load_file(made), wanted)
    with flashpack.open(made) as file:
        assert file.metadata() == {"format": "pt"}
    if dtype != "float8_e4m3fn":
        revert_from_flashpack(made, tmp_path / "back.safetensors")
        assert_same(load_file(tmp_path / "back.safetensors"), wanted)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_name_of_shards_is_reverted(tmp_path: Path, suffix: str) -> None:
    given = {f"t{number}": torch.randn(50, 20) for number in range(4)}
    flashpack.save_file(given, tmp_path / "model.flashpack", max_shard_size="8KB")
    destination = tmp_path / f"back{suffix}"
    destination.write_bytes(b"old")
    revert_from_flashpack(tmp_path / "model.flashpack", destination)
    assert_same(load_file(destination) if suffix == ".safetensors" else torch.load(destination), given)


def test_on_the_command_line(tmp_path: Path) -> None:
    given = {f"t{number}": torch.randn(50, 20) for number in range(4)}
    save_file(given, tmp_path / "source.safetensors")
    run = lambda *words: succeed(python("-m", "flashpack", *map(str, words)))  # noqa: E731
    out = tmp_path / "model.flashpack"
    assert INDEX in run("convert", tmp_path / "source.safetensors", out, "--max-shard-size", "8KB")
    (tmp_path / "source.safetensors").unlink()
    for place in (tmp_path, out, tmp_path / INDEX):
        assert "match their xxh3_64 checksums" in run("verify", place)
        assert "4 tensors" in run("explain", place)
        assert "t3" in run("metadata", place, "-i")
    run("revert", tmp_path, tmp_path / "back.safetensors")
    assert_same(load_file(tmp_path / "back.safetensors"), given)
