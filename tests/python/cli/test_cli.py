"""The command line: in process by click's own runner, and as users run it, in processes of its own."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import flashpack
import pytest
import torch
from command_line import HELP, assert_failure, assert_success, needed, run, saved, tensors
from helpers import (
    MAGIC,
    MIB,
    assert_same,
    bits,
    flip_byte,
    listing,
    noise,
    place_of,
    read_footer,
    read_payload,
    without_checksums,
)
from processes import TIMEOUT_SECONDS, environment, python, succeed
from safetensors.torch import load_file, save_file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.safetensors")


@pytest.fixture
def packed(path: Path) -> Path:
    return saved(path)


@pytest.mark.parametrize("command", HELP)
def test_help_lists_every_option(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert set(re.findall(r"(?<!\w)--?[a-z-]+", result.output)) >= HELP[command] | {"--help"}


def test_help_lists_every_command() -> None:
    assert set(re.findall(r"^  (\w[\w-]+)  ", run("--help").output, re.MULTILINE)) == set(HELP)


def test_an_unknown_option_is_a_usage_error() -> None:
    result = run("convert", "--frobnicate", "x")
    assert result.exit_code == 2
    assert "--frobnicate" in result.stderr


def test_version() -> None:
    try:
        installed = importlib.metadata.version("flashpack")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("flashpack runs from its source tree and was never installed")
    assert installed in run("--version").output


def test_convert(source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "out" / "made.flashpack"
    assert_success(run("convert", source, destination), destination)
    assert_same(flashpack.load_file(destination), tensors())
    with flashpack.open(destination) as file:
        assert file.metadata() == {"format": "pt", "made": "by a test"}


def test_convert_without_destination_stands_beside_its_source(source: Path) -> None:
    assert_success(run("convert", source), source.with_suffix(".flashpack"))
    assert_same(flashpack.load_file(source.with_suffix(".flashpack")), tensors())


def test_success_shows_an_absolute_path(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert_success(run("convert", source.name, "a.flashpack"), source.parent / "a.flashpack")


def test_convert_dtype_leaves_integers(source: Path, path: Path) -> None:
    assert_success(run("convert", source, path, "--dtype", "float16"))
    loaded = flashpack.load_file(path)
    assert loaded["encoder.steps"].item() == 2301
    assert bits(loaded["head.weight"]) == bits(tensors()["head.weight"].to(torch.float16))


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--ignore-names", "encoder.bias"], {"encoder.weight", "encoder.steps", "head.weight"}),
        (["--ignore-prefixes", "encoder."], {"head.weight"}),
        (["--ignore-suffixes", ".weight"], {"encoder.bias", "encoder.steps"}),
        (
            ["--ignore-names", "encoder.bias", "--ignore-names", "head.weight"],
            {"encoder.weight", "encoder.steps"},
        ),
        (["--ignore-prefixes", "head", "--ignore-suffixes", "bias"], {"encoder.weight", "encoder.steps"}),
    ],
)
def test_convert_ignores(source: Path, path: Path, options: list[str], left: set[str]) -> None:
    assert_success(run("convert", source, path, *options))
    assert set(flashpack.load_file(path)) == left


def test_convert_subfolder_and_variant(tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "pipeline" / "unet"
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(3)}, folder / "diffusion_pytorch_model.safetensors")
    save_file({"a": torch.ones(3)}, folder / "diffusion_pytorch_model.fp16.safetensors")
    for options, expected in (([], 0.0), (["--variant", "fp16"], 1.0)):
        assert_success(run("convert", folder.parent, path, "--subfolder", "unet", *options), path)
        assert flashpack.load_file(path)["a"].tolist() == [expected] * 3


def test_convert_by_two_libraries_is_refused(source: Path, path: Path) -> None:
    result = run("convert", source.parent, path, "--use-transformers", "--use-diffusers")
    assert_failure(result, "use_transformers and use_diffusers exclude each other")
    assert not path.exists()


@pytest.mark.parametrize("dtype", ["float99", "int8", "Tensor", ""])
def test_convert_to_what_is_no_floating_dtype(source: Path, path: Path, dtype: str) -> None:
    assert_failure(run("convert", source, path, "--dtype", dtype), "dtype")
    assert listing(path.parent) == {source.name}


def test_revert(packed: Path, tmp_path: Path) -> None:
    destination = tmp_path / "out" / "model.safetensors"
    assert_success(run("revert", packed, destination), destination)
    assert_same(load_file(destination), tensors())


def test_revert_without_destination(packed: Path) -> None:
    assert_success(run("revert", packed), packed.with_suffix(".safetensors"))
    assert_same(load_file(packed.with_suffix(".safetensors")), tensors())


def test_revert_to_torch(packed: Path, tmp_path: Path) -> None:
    assert_success(run("revert", packed, tmp_path / "model.pt"), tmp_path / "model.pt")
    assert_same(torch.load(tmp_path / "model.pt", weights_only=True), tensors())


@pytest.mark.parametrize("flags", [["--json"], ["-j"], ["-j", "-i"], ["--json", "--show-index"]])
def test_metadata_json(packed: Path, flags: list[str]) -> None:
    result = run("metadata", packed, *flags)
    assert (result.exit_code, result.stderr) == (0, "")
    expected = read_footer(packed)
    if not {"-i", "--show-index"} & set(flags):
        del expected["index"]
    assert json.loads(result.stdout) == expected


def test_metadata_text(packed: Path) -> None:
    result = run("metadata", packed)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert {"format: flashpack_v4", "align_bytes: 128"} <= set(lines)
    assert "made" in result.stdout
    assert "encoder.weight" not in result.stdout


def test_metadata_text_with_index_shows_every_record(packed: Path) -> None:
    lines = run("metadata", packed, "--show-index").stdout.splitlines()
    for record in read_footer(packed)["index"]:
        (line,) = [line for line in lines if f" {record['name']} " in line]
        assert line.endswith(str(record["shape"]))
        start, end = map(int, re.findall(r"(\d+):(\d+)", line)[0])
        assert (start, end) == (record["offset"], record["offset"] + record["length"])


def test_metadata_of_one_dtype(path: Path) -> None:
    flashpack.save_file({"a": torch.zeros(3)}, path)
    assert "target_dtype: float32" in run("metadata", path).stdout.splitlines()


def test_verify_sound(packed: Path) -> None:
    payload = read_footer(packed)["total_payload_bytes"]
    assert_success(run("verify", packed), packed, f"{payload} bytes", "xxh3_64")


def test_verify_damaged_says_where(path: Path) -> None:
    flashpack.save_file({"first": noise(torch.uint8, (MIB,)), "second": noise(torch.uint8, (MIB - 1,))}, path)
    flip_byte(path, place_of(path, "second")[0] + 5)
    assert_failure(run("verify", path), path, "chunk 1 ", "second")
    assert "chunk 0" not in run("verify", path).stderr


def test_verify_damaged_index(packed: Path) -> None:
    text = packed.read_bytes()
    packed.write_bytes(text.replace(b"head.weight", b"head.weighT"))
    assert_failure(run("verify", packed), packed, "the index does not match its digest")


def test_verify_without_checksums_says_so(packed: Path) -> None:
    without_checksums(packed)
    result = run("verify", packed)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(f"Warning: {packed}: ")
    assert "no checksums" in result.stderr


@pytest.mark.parametrize("command", HELP)
def test_a_missing_file_is_an_error(tmp_path: Path, command: str) -> None:
    absent = tmp_path / "absent.flashpack"
    expected = "Not a file, a folder" if command == "convert" else "No such file"
    code = 2 if command == "diff" else 1
    assert_failure(run(command, absent, *needed(command, absent)), "absent.flashpack", expected, code=code)
    assert listing(tmp_path) == set()


def test_revert_of_a_folder_without_a_flashpack_file(source: Path) -> None:
    assert_failure(run("revert", source.parent), source.parent, "No .flashpack weights in the folder")
    assert listing(source.parent) == {source.name}


@pytest.mark.parametrize("command", ["metadata", "verify"])
def test_a_folder_without_weights(tmp_path: Path, command: str) -> None:
    (tmp_path / "folder.flashpack").mkdir()
    assert_failure(run(command, tmp_path / "folder.flashpack"), "folder.flashpack", "No .flashpack or")
    assert listing(tmp_path) == {"folder.flashpack"}


def test_an_empty_folder_has_no_weights(tmp_path: Path) -> None:
    assert_failure(run("convert", tmp_path), tmp_path, "No .safetensors or .bin weights")


@pytest.mark.parametrize("command", HELP)
@pytest.mark.parametrize("content", [b"", b"not weights at all, but long enough to hold a footer"])
def test_garbage_is_an_error(tmp_path: Path, command: str, content: bytes) -> None:
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(content)
    more = [tmp_path / "out.x"] if command == "revert" else needed(command, garbage)
    assert_failure(run(command, garbage, *more), garbage, code=2 if command == "diff" else 1)
    assert listing(tmp_path) == {garbage.name}


@pytest.mark.parametrize("command", ["convert", "revert", "verify"])
@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_failure_shows_the_traceback(tmp_path: Path, command: str, flag: str) -> None:
    result = run(command, tmp_path / "absent", flag)
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")


# As users run it: a process of its own.

LAUNCHERS: dict[str, Sequence[str]] = {
    "module": [sys.executable, "-m", "flashpack"],
    # What an installer writes into the script.
    "script": [sys.executable, "-c", "import sys; from flashpack.__main__ import main; sys.exit(main())"],
}
INSTALLED = Path(sys.executable).with_name("flashpack")
if INSTALLED.exists():
    LAUNCHERS["installed"] = [str(INSTALLED)]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_as_a_process(source: Path, launcher: str) -> None:
    def launch(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*LAUNCHERS[launcher], *map(str, args)],
            env=environment(),
            cwd=source.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )

    made = source.with_suffix(".flashpack")
    assert succeed(launch("convert", source.name)) == f"Success: Saved to {made}\n"
    assert succeed(launch("verify", made.name)).startswith("Success: ")
    assert json.loads(succeed(launch("metadata", made.name, "-j")))["format"] == "flashpack_v4"
    assert succeed(launch("revert", made.name, "back.safetensors")).startswith("Success: ")
    assert_same(load_file(source.parent / "back.safetensors"), tensors())
    failed = launch("metadata", "absent")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("Error: ")
    assert "Traceback" not in failed.stderr
    assert launch("metadata").returncode == 2


def test_the_script_is_the_one_that_is_declared() -> None:
    pyproject = Path(__file__).parents[3] / "pyproject.toml"
    assert 'flashpack = "flashpack.__main__:main"' in pyproject.read_text().splitlines()


LIST_MODULES = """
import sys
from flashpack.__main__ import main
main(sys.argv[1:], standalone_mode=False)
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    [
        *("--help", "metadata {packed}", "metadata {packed} -i", "verify {packed}", "ls {packed}"),
        *("diff {packed} {packed}", "extract {packed} {out} *", "rename {packed} * a.* -o {out}"),
        *(
            "merge {packed} {other} {out}",
            "edit-metadata {packed} --set a=b",
            "convert {packed} {out}.flashpack",
        ),
        "convert {source} {out}",
        "convert {source} {out} --dtype bfloat16",
        "revert {packed} {out}.safetensors",
    ],
)
def test_light_commands_import_nothing_heavy(packed: Path, source: Path, command: str) -> None:
    names = {"packed": packed, "source": source}
    paths = names | {name: packed.with_name(name) for name in ("other", "out")}
    flashpack.save_file({"other": torch.ones(1)}, paths["other"])
    done = python("-c", LIST_MODULES, *[word.format(**paths) for word in command.split()])
    succeed(done)
    modules = set(done.stderr.split())
    assert "flashpack" in modules
    assert not modules & {"torch", "numpy", "safetensors", "transformers", "diffusers", "accelerate", "tqdm"}


@pytest.mark.parametrize("odd", ["9" * 5000, "[" * 50_000 + "]" * 50_000], ids=["digits", "nesting"])
def test_a_footer_that_python_cannot_decode(path: Path, odd: str) -> None:
    flashpack.save_file({"a": torch.ones(1)}, path)
    footer = read_footer(path)
    del footer["checksums"]
    text = (json.dumps(footer)[:-1] + f', "odd": {odd}}}').encode()
    path.write_bytes(read_payload(path) + text + len(text).to_bytes(8, "little") + MAGIC)
    with pytest.raises(flashpack.FlashPackError, match=re.escape(str(path))):
        flashpack.get_flashpack_file_metadata(path)
    assert not flashpack.is_flashpack_file(path)
    assert run("metadata", path).exit_code == 1
