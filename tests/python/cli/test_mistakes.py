"""Fifty mistakes that people make: each gets one clear sentence that ends with the next step."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from command_line import run, saved, tensors
from helpers import FIXTURES
from torch import nn

PUBLIC, PRIVATE = FIXTURES / "keys" / "public.pem", FIXTURES / "keys" / "private.pem"
# What was typed, and what the answer must say.
COMMANDS = {
    "ls model.flashpak": "cannot open: No such file or directory; did you mean model.flashpack?",
    "ls empty": "No .flashpack or .safetensors weights in the folder; it is empty",
    "ls others": "weights in the folder; it holds ['notes.txt']",
    "ls model.bin": "it is a file of torch.save: convert it with `flashpack convert`",
    "ls model.flashpack encoder.wieght": "fits none of 4 tensors; did you mean 'encoder.weight'?",
    "ls s3:/bucket/model.flashpack": "did you mean s3://bucket/model.flashpack?",
    "ls ftp://host/model.flashpack": "it opens s3://, gs://, az://, http://, https://, hf://",
    "metadata model.bin": "convert it with `flashpack convert`",
    "convert model.flashpack": "is already a FlashPack file: name a new file",
    "convert plain.safetensors --dtype float17": "did you mean float16?",
    "convert plain.safetensors --dtype int8": "take bfloat16, float16, float32",
    "convert plain.safetensors --max-shard-size '5 gigs'": 'a unit such as "5GB"',
    "convert plain.safetensors --checksum md5": "expected xxh3_64 or blake3",
    "convert plain.safetensors plain.safetensors": "the destination is its own source",
    "convert plain.safetensors --key ema": "key chooses a state dict of a torch file, and this is none",
    "convert model.bin --key ema": "it is a state dict itself: leave the key out",
    "convert training.pt --key ema": "choose one of its state dicts with --key (key=)",
    "convert ./model.flashpak": "Not a file, a folder, or a valid repository id; did you mean",
    "revert plain.safetensors": "it is a safetensors file",
    "revert model.flashpack model.gguf": "only .safetensors and torch's own format",
    "verify model.flashpak": "did you mean model.flashpack?",
    f"verify model.flashpack --key {PUBLIC}": "is not signed",
    f"verify model.flashpack --key {PRIVATE}": "no Ed25519 public key as `openssl pkey -pubout` writes one",
    f"sign model.flashpack --key {PRIVATE}": "make one by `flashpack convert --checksum blake3`",
    f"sign model.flashpack --key {PUBLIC}": "as `openssl genpkey -algorithm ed25519` writes one",
    "diff model.flashpack model.flashpak": "did you mean model.flashpack?",
    "extract model.flashpack others encoder": "is a folder: name a file in it, such as others/new.flashpack",
    "extract model.flashpack new.safetensors encoder": "`flashpack revert` makes safetensors",
    "extract model.flashpack new.flashpack encodr": "did you mean 'encoder'?",
    "merge model.flashpack plain.safetensors new.flashpack": "rename the tensors of one of them first",
    "rename model.flashpack encoder": "names come in pairs, old and new",
    "rename model.flashpack 'encoder.*' model": "would both be named 'model'",
    "rename model.flashpack encodr model": "did you mean 'encoder'?",
    "edit-metadata model.flashpack": "give --set KEY=VALUE or --remove KEY",
    "edit-metadata model.flashpack --set made": "--set takes KEY=VALUE",
    "edit-metadata model.flashpack --remove mode": "there are ['format', 'made']",
    "explain model.flashpack --device gpu": "expected cpu, cuda, cuda:0 or the like",
    "bench model.bin": "convert it with `flashpack convert`",
    "bench s3://bucket/model.flashpack --cold": "--cold is for files",
}
FILE = "model.flashpack"
CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "a lone name": (lambda: flashpack.load_file(FILE, names="encoder.bias"), "must be a list of strings"),
    "a misspelt name": (lambda: flashpack.load_file(FILE, names=["encoder.bais"]), 'mean "encoder.bias"?'),
    "a misspelt key": (lambda: flashpack.open(FILE)["encoder.bais"], "did you mean 'encoder.bias'?"),
    "a GPU": (lambda: flashpack.load_file(FILE, device="gpu"), "'cuda', 'cuda:0'"),
    "a misspelt dtype": (lambda: flashpack.load_file(FILE, dtype="float17"), "did you mean float16?"),
    "no path": (lambda: flashpack.load_file(None), "path must be str or os.PathLike[str]"),  # type: ignore[arg-type]
    "bytes": (lambda: flashpack.load_file(b"x"), "flashpack.load takes the bytes of a file"),  # type: ignore[arg-type]
    "no checksums": (
        lambda: flashpack.load_file("plain.safetensors", verify=True),
        "holds no checksums; `flashpack convert` writes them",
    ),
    "a class": (lambda: flashpack.assign_from_file(nn.Linear, FILE), "a class: call it for a module"),  # type: ignore[arg-type]
    "arguments swapped": (lambda: flashpack.assign_from_file(FILE, nn.Linear(2, 2)), "then the path"),  # type: ignore[arg-type]
    "a save swapped": (
        lambda: flashpack.save_file("new", tensors()),
        "the tensors come first, then the path",
    ),  # type: ignore[arg-type]
    "a list": (lambda: flashpack.save_file({"a": [1.0]}, "new"), "'a' is a list, not a tensor"),  # type: ignore[dict-item]
    "metadata": (lambda: flashpack.save_file(tensors(), "new", {"epoch": 3}), "take str() or json.dumps()"),  # type: ignore[dict-item]
    "a sparse tensor": (
        lambda: flashpack.save_file({"a": torch.ones(2).to_sparse()}, "new"),
        "call to_dense() first",
    ),
    "a meta tensor": (
        lambda: flashpack.save_file({"a": torch.ones(2, device="meta")}, "new"),
        "load or initialize it first",
    ),
    "another framework": (lambda: flashpack.open(FILE, "tf"), "is not one of pt, torch, pytorch, np, numpy"),
    "unsigned": (lambda: flashpack.sign_file(FILE, PRIVATE), 'pack_to_file(…, checksum="blake3")'),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    saved(folder / "model.flashpack")
    saved(folder / "plain.safetensors")
    torch.save(tensors(), folder / "model.bin")
    torch.save({"model": tensors(), "epoch": 3}, folder / "training.pt")
    (folder / "empty").mkdir()
    (folder / "others").mkdir()
    (folder / "others" / "notes.txt").write_text("nothing")
    return folder


@pytest.fixture(autouse=True)
def unchanged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whatever the mistake, all files stay what they are, and there are no others."""

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    monkeypatch.chdir(folder)
    yield
    assert content() == before


def check(message: str, expected: str) -> None:
    assert expected in message
    assert "\n" not in message.strip()
    assert len(message) < 500
    assert "Traceback" not in message


@pytest.mark.parametrize("typed", COMMANDS)
def test_on_the_command_line(typed: str) -> None:
    result = run(*shlex.split(typed))
    assert (result.exit_code, result.stdout) == (2 if typed.startswith("diff") else 1, "")
    assert result.stderr.startswith("Error: ")
    check(result.stderr, COMMANDS[typed])


@pytest.mark.parametrize("mistake", CALLS)
def test_in_python(mistake: str) -> None:
    call, expected = CALLS[mistake]
    with pytest.raises((ValueError, TypeError, KeyError, RuntimeError)) as caught:
        call()
    check(str(caught.value), expected)


def test_they_are_fifty() -> None:
    assert len(COMMANDS) + len(CALLS) >= 50
