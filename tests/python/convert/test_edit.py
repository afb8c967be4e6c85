"""Files out of FlashPack files: `extract`, `merge`, `rename`, `edit-metadata`, `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from command_line import assert_failure, assert_success, run, saved, tensors
from flashpack._convert import repack
from helpers import (
    FIXTURES,
    MIB,
    assert_same,
    bits,
    flip_byte,
    listing,
    noise,
    place_of,
    read_footer,
    several_chunks,
)


@pytest.fixture
def packed(path: Path) -> Path:
    return saved(path)


def metadata(path: Path) -> dict[str, str] | None:
    with flashpack.open(path) as file:
        return file.metadata()


@pytest.mark.parametrize("suffix", ["flashpack", "safetensors"])
def test_extract(tmp_path: Path, suffix: str) -> None:
    source, out = saved(tmp_path / f"model.{suffix}"), tmp_path / "part.flashpack"
    assert_success(run("extract", source, out, "encoder.*", "head.weight"), out)
    assert_same(flashpack.load_file(out), tensors())
    assert_success(run("extract", source, out, "*.bias"), out)
    assert_same(flashpack.load_file(out), {"encoder.bias": tensors()["encoder.bias"]})
    assert metadata(out) == {"format": "pt", "made": "by a test"}
    assert flashpack.verify_file(out).algorithm == "xxh3_64"


def test_ties_stay_and_large_tensors_go_in_parts(path: Path) -> None:
    large = {"large": noise(torch.uint8, (70 * MIB + 3,)), **several_chunks()}
    flashpack.save_file(large, path)
    out = path.with_name("out.flashpack")
    assert_success(run("extract", path, out, "*"), out)
    assert_same(flashpack.load_file(out), large)
    assert place_of(out, "weight") == place_of(out, "tied")
    assert out.stat().st_size < path.stat().st_size + MIB


def test_damage_is_refused_and_leaves_nothing(path: Path) -> None:
    flashpack.save_file({"a": noise(torch.uint8, (3 * MIB,)), "b": noise(torch.uint8, (100,))}, path)
    flip_byte(path, place_of(path, "b")[0] + 99)
    assert_failure(run("extract", path, path.with_name("out.flashpack"), "b"), path, "chunk 3")
    assert listing(path.parent) == {path.name}
    assert_success(run("extract", path, path.with_name("out.flashpack"), "a"))


def test_shards_and_checksums(packed: Path) -> None:
    out = packed.with_name("out.flashpack")
    assert_success(run("extract", packed, out, "*", "--max-shard-size", "1600B", "--checksum", "blake3"))
    assert_same(flashpack.load_file(out), tensors())
    assert flashpack.verify_file(out).algorithm == "blake3"
    assert_success(run("extract", out, packed.with_name("one.flashpack"), "*"))
    assert flashpack.verify_file(packed.with_name("one.flashpack")).algorithm == "blake3"
    assert_same(flashpack.load_file(packed.with_name("one.flashpack")), tensors())


def test_merge(packed: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other.flashpack", tmp_path / "out.flashpack"
    flashpack.save_file({"more": torch.ones(3)}, other, metadata={"made": "otherwise", "new": "key"})
    result = run("merge", packed, other, out)
    assert result.exit_code == 0
    assert result.stderr == (
        f"Warning: flashpack: {other}: metadata that the files before have otherwise: ['made']\n"
    )
    assert_same(flashpack.load_file(out), {**tensors(), "more": torch.ones(3)})
    assert metadata(out) == {"format": "pt", "made": "by a test", "new": "key"}
    result = run("merge", packed, out, tmp_path / "third.flashpack")
    assert_failure(result, "'encoder.weight'", packed, out, "rename the tensors of one of them first")
    assert not (tmp_path / "third.flashpack").exists()


@pytest.mark.parametrize(
    ("pairs", "names"),
    [
        (["encoder.*", "model.*"], {"model.weight", "model.bias", "model.steps", "head.weight"}),
        (["*", "m.*"], {"m.encoder.weight", "m.encoder.bias", "m.encoder.steps", "m.head.weight"}),
        (["*.weight", "w.*", "*.bias", "b.*"], {"w.encoder", "b.encoder", "encoder.steps", "w.head"}),
        (["*.?ias", "*.a?"], {"encoder.weight", "encoder.ab", "encoder.steps", "head.weight"}),
        (["head.weight", "lm_head"], {"encoder.weight", "encoder.bias", "encoder.steps", "lm_head"}),
        (["encoder", "m.e"], {"m.e.weight", "m.e.bias", "m.e.steps", "head.weight"}),
    ],
)
def test_rename(packed: Path, pairs: list[str], names: set[str]) -> None:
    before = {bits(tensor) for tensor in tensors().values()}
    result = run("rename", packed, *pairs)
    assert_success(result, packed, f"{len(names - set(tensors()))} tensor")
    renamed = flashpack.load_file(packed)
    assert set(renamed) == names
    assert {bits(tensor) for tensor in renamed.values()} == before
    assert metadata(packed) == {"format": "pt", "made": "by a test"}


def test_rename_to_a_new_file_keeps_the_old(packed: Path) -> None:
    content, out = packed.read_bytes(), packed.with_name("out.flashpack")
    result = run("rename", packed, "*", "m.*", "-o", out, "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert packed.read_bytes() == content
    assert set(flashpack.load_file(out)) == {f"m.{name}" for name in tensors()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encoder.*"], "names come in pairs"),
        (["encoder.*", "x"], "would both be named 'x'"),
        (["layers.*", "x.*"], "'layers.*' fits none of 4 tensors"),
        (["encoder.*", "x.*.*"], "each takes what one there has fitted"),
        (["[eh]*", "x.*"], "'[eh]*' fits none of 4 tensors"),
        (["encoder.", "x."], "'encoder.' fits none of 4 tensors"),
    ],
)
def test_renaming_that_makes_no_sense_changes_nothing(packed: Path, arguments: list[str], words: str) -> None:
    content = packed.read_bytes()
    assert_failure(run("rename", packed, *arguments), words)
    assert packed.read_bytes() == content
    assert listing(packed.parent) == {packed.name}


def test_edit_metadata(packed: Path) -> None:
    assert_success(
        run("edit-metadata", packed, "--set", "licence=MIT=ish", "--set", "a=", "--remove", "made")
    )
    assert metadata(packed) == {"format": "pt", "licence": "MIT=ish", "a": ""}
    assert_same(flashpack.load_file(packed), tensors())
    assert_failure(run("edit-metadata", packed, "--remove", "made"), "['made']", "there are ['a', 'format'")
    assert_failure(run("edit-metadata", packed, "--set", "no value"), "KEY=VALUE")
    assert_failure(run("edit-metadata", packed, "--set", "flashpack_set=1"), "is not to be edited")
    assert_failure(run("edit-metadata", packed), "--set KEY=VALUE or --remove KEY")


def test_a_file_in_place_keeps_links_and_mode(packed: Path) -> None:
    packed.chmod(0o640)
    link = packed.with_name("link.flashpack")
    link.symlink_to(packed.name)
    assert_success(run("edit-metadata", link, "--set", "a=b"))
    assert link.is_symlink()
    assert (metadata(packed) or {})["a"] == "b"
    assert packed.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("command", [["rename", "head", "tail"], ["edit-metadata", "--set", "a=b"]])
def test_a_file_that_is_saved_meanwhile_is_not_lost(
    packed: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *arguments = command
    write = repack.Output.write

    def save_before(self: repack.Output, *args: Any, **options: Any) -> bool:
        flashpack.save_file({"newer": torch.ones(3)}, packed)
        return write(self, *args, **options)

    monkeypatch.setattr(repack.Output, "write", save_before)
    assert_failure(run(name, packed, *arguments), packed, "was changed")
    assert set(flashpack.load_file(packed)) == {"newer"}
    assert listing(packed.parent) == {packed.name}


def test_signatures_are_not_kept(path: Path) -> None:
    flashpack.save_file(tensors(), path, checksum="blake3")
    flashpack.sign_file(path, FIXTURES / "keys" / "private.pem")
    result = run("edit-metadata", path, "--set", "a=b")
    assert result.exit_code == 0
    assert result.stderr == f"Warning: flashpack: {path}: signatures are not kept: sign the new file\n"
    assert "signature" not in read_footer(path)
    assert flashpack.verify_file(path).algorithm == "blake3"


def test_what_is_not_one_flashpack_file_is_not_replaced(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    flashpack.pack_to_file(tensors(), shards / "model.flashpack", max_shard_size=1600)
    before = {name: (shards / name).read_bytes() for name in listing(shards)}
    for place in (shards, shards / "model.flashpack", shards / "model.flashpack.index.json"):
        assert_failure(run("edit-metadata", place, "--set", "a=b"), "--output")
    shard = shards / "model-00001-of-00002.flashpack"
    assert_failure(run("edit-metadata", shard, "--set", "a=b"), "is one of several files", "--output")
    assert_failure(run("rename", shard, "*", "m.*"), "is one of several files", "--output")
    assert {name: (shards / name).read_bytes() for name in listing(shards)} == before
    assert_success(run("extract", shard, tmp_path / "part.flashpack", "*"))
    assert metadata(tmp_path / "part.flashpack") is None
    plain = saved(tmp_path / "plain.safetensors")
    assert_failure(run("rename", plain, "*", "m.*"), plain)


@pytest.mark.parametrize(
    "command",
    [
        "extract SOURCE OUT head",
        "merge SOURCE other.flashpack OUT",
        "convert SOURCE OUT --dtype bf16 --max-shard-size 1GB",
        "rename SOURCE head body --output OUT",
        "edit-metadata SOURCE --set a=b --output OUT",
    ],
)
def test_nothing_is_written_onto_the_shards_that_it_is_made_of(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flashpack.save_file({"other": torch.ones(3)}, "other.flashpack")
    name, folder = "shards/model.flashpack", Path("shards")
    folder.mkdir()
    flashpack.save_file(tensors(), name, max_shard_size=1600)
    before = {each: (folder / each).read_bytes() for each in listing(folder)}
    sources = [name, f"{name}.index.json"] + [str(folder)] * (not command.startswith("convert"))
    for source in sources:
        for out in (name, *(f"shards/{each}" for each in before)):
            words = {"SOURCE": source, "OUT": out}
            assert_failure(run(*(words.get(word, word) for word in command.split())), "is its own source")
    assert {each: (folder / each).read_bytes() for each in listing(folder)} == before


@pytest.mark.parametrize("command", ["extract SOURCE OUT head*", "convert SOURCE OUT --dtype bf16"])
def test_a_part_of_shards_does_not_take_the_place_of_them_all(tmp_path: Path, command: str) -> None:
    whole = tmp_path / "model.flashpack"
    flashpack.save_file(tensors(), whole, max_shard_size=1600)
    before = {each: (tmp_path / each).read_bytes() for each in listing(tmp_path)}
    for shard in tmp_path.glob("*-of-*"):
        words = {"SOURCE": str(shard), "OUT": str(whole), "head*": next(iter(flashpack.load_file(shard)))}
        assert_failure(run(*(words.get(word, word) for word in command.split())), "is its own source")
    assert {each: (tmp_path / each).read_bytes() for each in listing(tmp_path)} == before


def test_one_model_alone_is_not_merged(packed: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "other.flashpack")
    content = other.read_bytes()
    assert_failure(run("merge", packed, other), "name two or more")
    assert other.read_bytes() == content


@pytest.mark.parametrize("command", ["extract", "merge"])
def test_destinations_that_are_none(packed: Path, tmp_path: Path, command: str) -> None:
    more = ["*"] if command == "extract" else []
    content = packed.read_bytes()
    assert_failure(run(command, packed, packed, *more), "is its own source")
    assert_failure(run(command, packed, tmp_path / "out.safetensors", *more), "flashpack revert")
    assert_failure(run(command, packed, tmp_path, *more), "is a folder: name a file in it")
    assert packed.read_bytes() == content


def test_convert_writes_flashpack_anew(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.flashpack"
    options = ["--dtype", "bf16", "--max-shard-size", "800B", "--checksum", "blake3"]
    assert_success(run("convert", packed, out, *options), f"{out}.index.json")
    cast = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors().items()}
    assert_same(flashpack.load_file(out), cast)
    for shards in (out, Path(f"{out}.index.json")):
        assert_success(run("convert", shards, tmp_path / "whole.flashpack", "--ignore-prefixes", "head"))
        assert_same(
            flashpack.load_file(tmp_path / "whole.flashpack"),
            {name: tensor for name, tensor in cast.items() if not name.startswith("head")},
        )
    assert_success(run("convert", packed, tmp_path / "small.flashpack", "--dtype", "float8_e4m3fn"))
    small = flashpack.load_file(tmp_path / "small.flashpack")
    assert small["head.weight"].dtype == torch.float8_e4m3fn
    assert metadata(tmp_path / "small.flashpack") == metadata(packed)


def test_convert_of_flashpack_asks_for_a_destination(packed: Path) -> None:
    assert_failure(run("convert", packed), packed, "name a new file")
    assert_failure(run("convert", packed, packed), "is its own source")
    assert_failure(run("convert", packed, packed.with_name("x"), "--use-transformers"), "is for other")
    assert listing(packed.parent) == {packed.name}
