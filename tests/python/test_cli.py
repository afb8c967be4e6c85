"""The command line: in process by click's own runner, and as users run it, in processes of its own."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

import flashpack
import pytest
import torch
from click.testing import CliRunner, Result
from flashpack.__main__ import main
from helpers import (
    FIXTURES,
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
    write_file,
)
from processes import TIMEOUT_SECONDS, environment, python, succeed
from safetensors.torch import load_file, save_file
from torch import Tensor

HELP = {
    "convert": {
        *("--subfolder", "--variant", "--revision", "--dtype", "--ignore-names", "--ignore-prefixes"),
        *("--ignore-suffixes", "--use-transformers", "--use-diffusers", "--verbose", "-v"),
    },
    "revert": {"--verbose", "-v"},
    "metadata": {"--show-index", "-i", "--json", "-j"},
    "sign": {"--key", "--verbose", "-v"},
    "verify": {"--key", "--verbose", "-v"},
    "explain": {"--device", "--eager", "--verbose", "-v"},
}
# What a command needs beside a path.
NEEDED = {"sign": ["--key", FIXTURES / "keys" / "private.pem"]}


def run(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def tensors() -> dict[str, Tensor]:
    return {
        "encoder.weight": noise(torch.float32, (24, 16), seed=1),
        "encoder.bias": noise(torch.float32, (24,), seed=2),
        "encoder.steps": torch.tensor(2301),
        "head.weight": torch.linspace(-3, 3, 64).reshape(4, 16),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "model.safetensors", {"format": "pt", "made": "by a test"})
    return tmp_path / "model.safetensors"


@pytest.fixture
def packed(path: Path) -> Path:
    flashpack.save_file(tensors(), path, metadata={"made": "by a test"})
    return path


def assert_success(result: Result, *shown: object) -> None:
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Success: ")
    assert all(str(text) in result.stdout for text in shown), result.stdout
    assert result.stderr == ""


def assert_failure(result: Result, *shown: object) -> None:
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert all(str(text) in result.stderr for text in shown), result.stderr
    assert "Traceback" not in result.output
    assert "Success" not in result.output


@pytest.mark.parametrize("command", HELP)
def test_help_lists_every_option(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert set(re.findall(r"(?<!\w)--?[a-z-]+", result.output)) >= HELP[command] | {"--help"}


def test_help_lists_every_command() -> None:
    assert set(re.findall(r"^  (\w+)  ", run("--help").output, re.MULTILINE)) == set(HELP)


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
    result = run(command, tmp_path / "absent.flashpack", *NEEDED.get(command, []))
    expected = "Not a file, a folder" if command == "convert" else "No such file"
    assert_failure(result, "absent.flashpack", expected)
    assert listing(tmp_path) == set()


def test_revert_of_a_folder_without_a_flashpack_file(source: Path) -> None:
    assert_failure(run("revert", source.parent), source.parent, "No .flashpack file in the folder")
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
    more = [tmp_path / "out.x"] if command == "revert" else NEEDED.get(command, [])
    assert_failure(run(command, garbage, *more), garbage)
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
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
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
        *("--help", "metadata {packed}", "metadata {packed} -i", "verify {packed}"),
        "convert {source} {out}",
        "convert {source} {out} --dtype bfloat16",
        "revert {packed} {out}.safetensors",
    ],
)
def test_light_commands_import_nothing_heavy(packed: Path, source: Path, command: str) -> None:
    paths = {"packed": packed, "source": source, "out": packed.with_name("out")}
    done = python("-c", LIST_MODULES, *[word.format(**paths) for word in command.split()])
    succeed(done)
    modules = set(done.stderr.split())
    assert "flashpack" in modules
    assert not modules & {"torch", "numpy", "safetensors", "transformers", "diffusers", "accelerate", "tqdm"}


# Conversion stands still until the bar is up (or would be), so that nothing depends on time.
SLOW = """
import sys, threading, time
from flashpack._core import native as _native
from flashpack._core import progress as _progress
from flashpack.__main__ import main

_progress.INLINE_BYTES = 0
_progress._QUIET_SECONDS = 0.0
_progress._POLL_SECONDS = 0.01
shown = threading.Event()
new_bar, call = _progress._new_bar, _native.call


def new_bar_shown(label):
    bar = new_bar(label)
    shown.set()
    return bar


def slow_call(op, progress=None, **fields):
    if op in ("convert", "revert", "verify"):
        shown.wait(float(sys.argv[1]))
    return call(op, progress, **fields)


_progress._new_bar, _native.call = new_bar_shown, slow_call
main(sys.argv[2:])
"""
BAR = re.compile(r"100%.*\|.*B/s")


def on_terminal(*args: object) -> tuple[int, str]:
    """Exit code and what came through a pseudo-terminal that is all of the program's streams."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [sys.executable, *map(str, args)], env=environment(), stdin=child, stdout=child, stderr=child
    ) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                block = os.read(parent, 65536)
            except OSError:  # the last of the other side's descriptors was closed
                break
            if not block:
                break
            shown += block
        os.close(parent)
        return process.wait(TIMEOUT_SECONDS), shown.decode()


@pytest.mark.parametrize(
    ("command", "label"), [("convert", "Converting"), ("revert", "Reverting"), ("verify", "Verifying")]
)
def test_progress_shows_on_a_terminal(source: Path, packed: Path, command: str, label: str) -> None:
    args = [source, packed.with_name("new")] if command == "convert" else [packed]
    if command == "revert":
        args.append(packed.with_name("new.safetensors"))
    code, shown = on_terminal("-c", SLOW, 60, command, *args)
    assert code == 0, shown
    assert label in shown
    assert BAR.search(shown), shown
    assert "Success: " in shown


def test_no_progress_into_a_pipe(source: Path) -> None:
    done = python("-c", SLOW, 0.3, "convert", source, source.with_name("new"))
    assert succeed(done).startswith("Success: ")
    assert done.stderr == ""


def test_verbose_shows_progress_anywhere(source: Path) -> None:
    done = python("-c", SLOW, 60, "convert", source, source.with_name("new"), "-v")
    assert succeed(done).startswith("Success: ")
    assert "Converting" in done.stderr


def test_quick_work_shows_no_progress_on_a_terminal(source: Path) -> None:
    code, shown = on_terminal("-m", "flashpack", "convert", source, source.with_name("new"))
    assert code == 0
    assert "Converting" not in shown
    assert len(shown.splitlines()) == 1


# Waits inside the native call's worker thread until the main thread was interrupted, then lets it go on.
INTERRUPTED = """
import signal, sys, time
from flashpack._core import native as _native
from flashpack._core import progress as _progress
from flashpack.__main__ import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs us in the background ignores it
_progress.INLINE_BYTES = 0
call = _native.call


def waiting_call(op, progress=None, **fields):
    print("started", flush=True)
    while not progress[2]:
        time.sleep(0.01)
    return call(op, progress, **fields)


_native.call = waiting_call
main(sys.argv[1:])
"""


@pytest.mark.parametrize("old", [None, b"the old file"])
def test_an_interrupt_cancels_and_leaves_nothing(source: Path, path: Path, old: bytes | None) -> None:
    if old is not None:
        path.write_bytes(old)
    before = {name: (path.parent / name).read_bytes() for name in listing(path.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "convert", str(source), str(path)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
    assert process.returncode != 0
    assert "Success" not in out
    assert "Traceback" not in error
    assert {name: (path.parent / name).read_bytes() for name in listing(path.parent)} == before


@pytest.mark.parametrize(
    "entry", [flashpack.commands.convert_to_flashpack, flashpack.commands.revert_from_flashpack]
)
def test_the_functions_behind_it_print_nothing(
    source: Path, packed: Path, capfd: pytest.CaptureFixture[str], entry: Callable[..., str]
) -> None:
    given = source if entry is flashpack.commands.convert_to_flashpack else packed
    assert entry(given, source.with_name("out.safetensors")) == str(source.with_name("out.safetensors"))
    assert capfd.readouterr() == ("", "")


def test_metadata_sends_no_control_sequences(path: Path) -> None:
    flashpack.save_file({"a\x1b[2J": torch.ones(1)}, path, metadata={"k\x1b]0;t\x07": "v\x9b"})
    footer = {**read_footer(path), "odd\x1b[31m": "\x1b[0m\x7f"}
    footer.pop("checksums")
    write_file(path, read_payload(path), footer)
    for flags in ([], ["-j"]):
        done = run("metadata", "-i", *flags, path)
        assert done.exit_code == 0, done.output
        assert not set("\x1b\x07\x9b") & set(done.output)
        assert "u001b" in done.output or "x1b" in done.output


def test_metadata_where_the_terminal_has_no_code_for_it(path: Path) -> None:
    flashpack.save_file({"层": torch.ones(1)}, path)
    shown = succeed(
        python("-m", "flashpack", "metadata", "-i", path, env=environment(PYTHONIOENCODING="ascii"))
    )
    assert "\\u5c42" in shown


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


@pytest.mark.parametrize("command", [c for c in HELP if c != "metadata"])
def test_an_interrupt_ends_with_130(command: str, monkeypatch: pytest.MonkeyPatch, packed: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flashpack._core.native.call", interrupt)
    key = FIXTURES / "keys" / "private.pem"
    result = run(command, packed, *(["--key", key] if command == "sign" else []))
    assert result.exit_code == 130
    assert (result.stdout, result.stderr) == ("", "Interrupted\n")


@pytest.mark.parametrize("stdout", ["ascii", "closed"])
@pytest.mark.parametrize("command", ["convert", "verify", "metadata", "explain"])
def test_standard_output_that_cannot_say_it(command: str, stdout: str, source: Path) -> None:
    path = source.rename(source.with_name("modèle 模型.safetensors"))
    shell = [sys.executable, "-m", "flashpack", command, str(path)]
    if stdout == "closed":
        shell = ["/bin/sh", "-c", '"$@" >&-', "sh", *shell]
    done = subprocess.run(
        shell,
        env=environment(PYTHONIOENCODING="ascii"),
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Error" not in done.stderr
    assert command != "convert" or path.with_suffix(".flashpack").is_file()
