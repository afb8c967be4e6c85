"""Looking into weights: `flashpack ls`, `metadata` and `diff`, and what they print where."""

from __future__ import annotations

import json
from pathlib import Path

import flashpack
import pytest
import torch
from command_line import assert_failure, run, saved, tensors
from flashpack._core import native
from helpers import DTYPES, flip_byte, noise, read_footer
from processes import environment, python, succeed
from safetensors.torch import save_file
from terminals import on_terminal

LONG = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
LISTED = """\
NAME                                                                  DTYPE     SHAPE        SIZE
decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight  bfloat16  [3]           6 B
encoder.bias                                                          float32   [24]         96 B
encoder.steps                                                         int64     []            8 B
encoder.weight                                                        float32   [24, 16]  1.54 kB
head.2.weight                                                         float32   [2]           8 B
head.10.weight                                                        float32   [2]           8 B
head.weight                                                           float32   [4, 16]     256 B
7 tensors, 480 elements, 1.92 kB: float32 1.90 kB, int64 8 B, bfloat16 6 B
"""
AT_80 = """\
NAME                                                 DTYPE     SHAPE        SIZE
decoder.block.0.layer.0.S…ive_attention_bias.weight  bfloat16  [3]           6 B
"""
GROUPED = """\
PREFIX   TENSORS  ELEMENTS     SIZE  DTYPES
decoder        1         3      6 B  bfloat16
encoder        3       409  1.64 kB  float32, int64
head           3        68    272 B  float32
7 tensors, 480 elements, 1.92 kB: float32 1.90 kB, int64 8 B, bfloat16 6 B
"""
FLOATS = [
    dtype
    for dtype in DTYPES
    if dtype.is_floating_point and dtype not in (torch.float64, torch.float4_e2m1fn_x2)
]
BOLD, RESET = "\x1b[1m", "\x1b[0m"


@pytest.fixture
def model(path: Path) -> Path:
    more = {LONG: torch.ones(3, dtype=torch.bfloat16), "head.10.weight": torch.ones(2)}
    flashpack.save_file({**tensors(), **more, "head.2.weight": torch.zeros(2)}, path, {"made": "by a test"})
    return path


@pytest.fixture(params=["flashpack", "safetensors", "shards", "folder"])
def any_kind(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same model in each way that there is."""
    if request.param in ("flashpack", "safetensors"):
        return saved(tmp_path / f"model.{request.param}")
    flashpack.pack_to_file(tensors(), tmp_path / "model.flashpack", max_shard_size=1600)
    return tmp_path / "model.flashpack" if request.param == "shards" else tmp_path


def printed(*args: object) -> str:
    result = run(*args)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def names_of(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()[1:-1]]


def test_ls_into_a_pipe(model: Path) -> None:
    assert succeed(python("-m", "flashpack", "ls", model)) == LISTED
    assert printed("ls", model, "-d", 1) == GROUPED


@pytest.mark.parametrize(
    ("columns", "variables"), [(120, {}), (120, {"NO_COLOR": "1"}), (120, {"TERM": "dumb"})]
)
def test_ls_on_a_wide_terminal(model: Path, columns: int, variables: dict[str, str]) -> None:
    code, shown = on_terminal("-m", "flashpack", "ls", model, columns=columns, **variables)
    assert code == 0
    lines = shown.replace("\r\n", "\n")
    assert lines.replace(BOLD, "").replace(RESET, "") == LISTED
    assert (BOLD in lines) is not bool(variables)


def test_ls_on_a_narrow_terminal_shortens_names(model: Path) -> None:
    code, shown = on_terminal("-m", "flashpack", "ls", model, NO_COLOR="1")
    lines = shown.replace("\r\n", "\n").splitlines()
    assert code == 0
    assert max(map(len, lines)) == 80
    assert lines[:2] == AT_80.splitlines()


def test_a_list_longer_than_the_screen_goes_to_the_pager(model: Path) -> None:
    code, shown = on_terminal("-m", "flashpack", "ls", model, columns=120, lines=5, PAGER="wc -l")
    assert (code, shown.split()) == (0, [str(len(LISTED.splitlines()))])
    code, shown = on_terminal("-m", "flashpack", "ls", model, columns=120, lines=20, PAGER="wc -l")
    assert "encoder.weight" in shown


def test_ls_of_no_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    lines = printed("ls", tmp_path / "none.safetensors", "--long").splitlines()
    assert lines == ["NAME  DTYPE  SHAPE  SIZE  OFFSET", "0 tensors, 0 elements, 0 B: "]


def test_ls_of_every_kind(any_kind: Path) -> None:
    text = printed("ls", any_kind)
    assert names_of(text) == ["encoder.bias", "encoder.steps", "encoder.weight", "head.weight"]
    assert text.splitlines()[-1] == "4 tensors, 473 elements, 1.90 kB: float32 1.89 kB, int64 8 B"


def test_places_are_those_in_the_files(any_kind: Path) -> None:
    listed = json.loads(printed("ls", any_kind, "-j"))
    assert sum(each["bytes"] for each in listed["files"]) == sum(
        Path(each["path"]).stat().st_size for each in listed["files"]
    )
    for tensor in listed["tensors"]:
        content = Path(tensor["file"]).read_bytes()[tensor["offset"] :][: tensor["bytes"]]
        expected = tensors()[tensor["name"]]
        assert content == expected.numpy().tobytes(), tensor
        assert (tensor["dtype"], tensor["shape"]) == (
            str(expected.dtype).removeprefix("torch."),
            list(expected.shape),
        )


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["*.weight"], [LONG, "encoder.weight", "head.2.weight", "head.10.weight", "head.weight"]),
        (["encoder"], ["encoder.bias", "encoder.steps", "encoder.weight"]),
        (["head.?.*", "*.bias"], ["encoder.bias", "head.2.weight"]),
        (["head.*", "-r"], ["head.weight", "head.10.weight", "head.2.weight"]),
        (["encoder.*", "-s", "size"], ["encoder.weight", "encoder.bias", "encoder.steps"]),
        (["encoder.*", "-s", "file", "-l"], ["encoder.weight", "encoder.bias", "encoder.steps"]),
    ],
)
def test_ls_filters_and_sorts(model: Path, options: list[str], names: list[str]) -> None:
    assert names_of(printed("ls", model, *options)) == names


def test_a_compressed_file_has_no_places(model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.flashpack"
    assert run("convert", model, small, "--compress", "fast").exit_code == 0
    listed = json.loads(printed("ls", "-j", small))
    assert [each["compressed"] for each in listed["files"]] == [True]
    assert {tensor["offset"] for tensor in listed["tensors"]} == {None}
    assert {line.split()[-1] for line in printed("ls", "-l", small).splitlines()[1:-1]} == {"-"}
    assert "7 tensors are the same" in printed("diff", model, small)


def test_long_names_the_shard_of_each(tmp_path: Path) -> None:
    flashpack.pack_to_file(tensors(), tmp_path / "model.flashpack", max_shard_size=1600)
    lines = printed("ls", tmp_path, "-l").splitlines()
    assert lines[0].split() == ["NAME", "DTYPE", "SHAPE", "SIZE", "OFFSET", "FILE"]
    assert {line.split()[-1] for line in lines[1:-1]} == {
        "model-00001-of-00002.flashpack",
        "model-00002-of-00002.flashpack",
    }


def test_a_pattern_that_fits_nothing_says_what_was_meant(model: Path) -> None:
    assert_failure(
        run("ls", model, "encoders"), model, "'encoders' fits none of 7", "did you mean 'encoder'?"
    )


def test_names_send_no_control_sequences(path: Path) -> None:
    flashpack.save_file({"a\x1b[2J": torch.ones(1)}, path)
    assert "\x1b" not in printed("ls", path)
    assert "a\\x1b[2J" in printed("ls", path)


def test_metadata_begins_with_a_summary(model: Path) -> None:
    lines = printed("metadata", model).splitlines()
    assert lines[: lines.index("")] == [
        str(model),
        "  tensors    7 tensors, 480 elements: float32 1.90 kB, int64 8 B, bfloat16 6 B",
        f"  size       1.92 kB of tensors in 1 file of {model.stat().st_size / 1000:.2f} kB",
        "  checksums  xxh3_64, one for each 1.05 MB",
        "  signature  none",
        "  metadata   made: by a test",
    ]
    assert f"align_bytes: {read_footer(model)['align_bytes']}" in lines


def test_metadata_of_several_files(tmp_path: Path) -> None:
    path = tmp_path / "model.flashpack"
    flashpack.save_file(tensors(), path, max_shard_size=1600, compress="fast", checksum="blake3")
    lines = printed("metadata", path).splitlines()
    assert lines[2].endswith(" kB, compressed") and " in 2 files of " in lines[2]
    assert lines[4] == "  signature  each file may have one, see `flashpack verify --key`"


def test_the_same_is_the_same_in_every_kind(any_kind: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    result = run("diff", any_kind, saved(tmp_path / "other" / "again.safetensors"), "-j")
    found = json.loads(result.stdout)
    assert (found["equal"], found["different"]) == (4, [])
    assert (found["only_first"], found["only_second"]) == ([], [])


def test_differences_are_told(model: Path, tmp_path: Path) -> None:
    changed = flashpack.load_file(model, eager=True)
    changed["encoder.weight"][3, 5] += 0.25
    changed["encoder.bias"] = changed["encoder.bias"][:4]
    changed["head.2.weight"] = torch.full((2,), float("nan"))
    changed["head.10.weight"] = torch.ones(2, dtype=torch.float16)
    changed["new\x1b"] = changed.pop(LONG)
    other = tmp_path / "other.flashpack"
    flashpack.save_file(changed, other, {"made": "by another"})
    result = run("diff", model, other)
    assert (result.exit_code, result.stderr) == (1, "")
    difference = (changed["encoder.weight"] - flashpack.load_file(model)["encoder.weight"]).abs()
    largest = difference.nan_to_num().max().item()
    assert result.stdout.splitlines() == [
        f"- {LONG}: only in {model}",
        f"+ new\\x1b: only in {other}",
        f"~ encoder.weight: 1 of 384 values differ, by up to {largest:.3g}",
        "~ encoder.bias: shapes [24] and [4]",
        "~ head.10.weight: float32 and float16; the same values",
        "~ head.2.weight: 2 of 2 values differ; 2 are NaN or infinite in one of the two",
        "~ metadata 'made' differs",
        "2 tensors are the same in both",
    ]
    assert run("diff", model, other, "-q").output == ""
    assert run("diff", model, model).exit_code == 0


def test_large_and_many_tensors_are_compared(tmp_path: Path) -> None:
    """More than one piece and one batch, at other places and in another order in the second file."""
    first = {
        "large": noise(torch.int32, (3_000_000,)),
        **{f"t.{n}": torch.full((n % 7,), n) for n in range(2000)},
    }
    second = {name: tensor.clone() for name, tensor in reversed(first.items())}
    second["large"][[0, 1_500_000, 2_999_999]] ^= 1
    second["t.1999"] += 1000
    paths = [tmp_path / "first.safetensors", tmp_path / "second.flashpack"]
    save_file(first, paths[0])
    flashpack.save_file(second, paths[1])
    found = native.call("compare", path=str(paths[0]), other=str(paths[1]))
    assert {
        each["name"]: (each["values"]["different"], each["values"]["largest"]) for each in found["different"]
    } == {
        "large": (3, 1.0),
        "t.1999": (1999 % 7, 1000.0),
    }
    assert found["equal"] == 1999


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_are_those_that_torch_sees(dtype: torch.dtype, tmp_path: Path) -> None:
    """All values of a byte, random bits of larger types: beside what torch makes of them."""
    bits = torch.arange(256, dtype=torch.uint8) if dtype.itemsize == 1 else noise(torch.uint8, (4000,))
    first, second = {"a": bits.view(dtype)}, {"a": bits.view(dtype).double()}
    flashpack.save_file(first, tmp_path / "first.flashpack")
    flashpack.save_file(second, tmp_path / "second.flashpack")
    paths = {"path": str(tmp_path / "first.flashpack"), "other": str(tmp_path / "second.flashpack")}
    (found,) = native.call("compare", **paths)["different"]
    assert (found["values"]["different"], found["values"]["unbounded"]) == (0, 0)
    second["a"][5] = 0.1
    flashpack.save_file(second, tmp_path / "second.flashpack")
    (found,) = native.call("compare", **paths)["different"]
    assert found["values"]["different"] == 1


def test_models_that_cannot_be_compared_end_with_2(model: Path, tmp_path: Path) -> None:
    assert_failure(run("diff", model, tmp_path / "absent"), "absent", code=2)


def test_help_by_h_and_several_files_of_verify(model: Path, tmp_path: Path) -> None:
    assert run("-h").output == run("--help").output
    assert run("ls", "-h").output == run("ls", "--help").output
    other = saved(tmp_path / "other.flashpack")
    assert printed("verify", model, other).count("Success: ") == 2
    assert printed("verify", model, other, "-q") == ""
    flip_byte(model, 10)
    result = run("verify", model, other, tmp_path / "absent.flashpack")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"Success: {other}")
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["Error:"] * 3
    assert "2 of 3 are not sound" in result.stderr


HELP = """\
Usage: flashpack [OPTIONS] COMMAND [ARGS]...

  Pack model weights into FlashPack files, and look into them.

Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.

Commands:
  bench          Measure loads beside what this machine can do.
  convert        Convert weights to FlashPack.
  diff           Compare two models, value by value.
  edit-metadata  Set or remove strings of a file's metadata.
  explain        Print what a load would do, and what limits it.
  extract        Write some tensors to a file of their own.
  ls             List tensors: names, dtypes, shapes, sizes.
  merge          Write the tensors of several models to one file.
  metadata       Print what a file says about itself.
  rename         Rename tensors and modules.
  revert         Convert a FlashPack file or model folder back.
  sign           Sign a file that has BLAKE3 checksums.
  verify         Check the structure and every checksum of files.
"""


def test_the_list_of_commands_is_whole_sentences() -> None:
    assert printed("-h") == HELP


def test_completion_is_what_the_page_says() -> None:
    code = "from flashpack.__main__ import main; main(prog_name='flashpack')"
    script = succeed(python("-c", code, env=environment(_FLASHPACK_COMPLETE="bash_source")))
    assert "_FLASHPACK_COMPLETE=bash_complete" in script
