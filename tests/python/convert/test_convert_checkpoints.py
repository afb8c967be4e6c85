"""Torch checkpoints that hold more than a state dict, and options of a conversion that match nothing."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from click.testing import CliRunner
from flashpack.__main__ import main
from flashpack.commands import convert_to_flashpack
from flashpack.utils import string_to_dtype
from helpers import assert_same

MODEL = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
EMA = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"model": MODEL, "ema": {"model": EMA}, "epoch": 3}, tmp_path / "c.ckpt")
    return tmp_path / "c.ckpt"


@pytest.mark.parametrize(("key", "expected"), [("model", MODEL), ("ema.model", EMA)])
def test_key_chooses_the_state_dict(checkpoint: Path, key: str, expected: dict[str, Any]) -> None:
    assert_same(flashpack.load_file(convert_to_flashpack(checkpoint, key=key)), expected)
    result = CliRunner().invoke(main, ["convert", str(checkpoint), str(checkpoint) + "2", "--key", key])
    assert result.exit_code == 0, result.output
    assert_same(flashpack.load_file(str(checkpoint) + "2"), expected)


def test_key_chooses_in_a_dict(tmp_path: Path) -> None:
    convert_to_flashpack({"model": MODEL}, tmp_path / "m.flashpack", key="model")
    assert_same(flashpack.load_file(tmp_path / "m.flashpack"), MODEL)


@pytest.mark.parametrize("key", [None, "modle", "epoch", "model.weight"])
def test_a_checkpoint_names_the_state_dicts_to_choose_from(checkpoint: Path, key: str | None) -> None:
    with pytest.raises(ValueError, match=r"choose one .*--key \(key=\): \['model', 'ema.model'\]"):
        convert_to_flashpack(checkpoint, key=key)


def test_what_lies_beside_the_state_dict_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": MODEL, "epoch": 3, "optimizer": {}}, tmp_path / "c.ckpt")
    with pytest.warns(
        UserWarning, match=r"2 entries of 'state_dict' and leaves out \['epoch', 'optimizer'\]"
    ):
        made = convert_to_flashpack(tmp_path / "c.ckpt")
    assert_same(flashpack.load_file(made), MODEL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_to_flashpack(tmp_path / "c.ckpt", key="state_dict")


def test_key_is_for_torch_checkpoints(tmp_path: Path) -> None:
    flashpack.save_file(MODEL, tmp_path / "m.flashpack")
    from safetensors.torch import save_file

    save_file(MODEL, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="key chooses"):
        convert_to_flashpack(tmp_path / "m.safetensors", key="model")
    with pytest.raises(ValueError, match="key chooses"):
        convert_to_flashpack(torch.nn.Linear(1, 1), tmp_path / "x.flashpack", key="model")


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ({"state_dict": MODEL, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"state_dict": MODEL, "out": pathlib.PurePosixPath("x")}, "PurePosixPath"),
        ({"state_dict": MODEL, "took": datetime.timedelta(1)}, "datetime.timedelta"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_a_refused_pickle_names_what_is_refused(content: object, culprit: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="refuses the file") as caught:
        convert_to_flashpack(tmp_path / "c.pt")
    told = "".join(traceback.format_exception(caught.value)) + str(
        CliRunner().invoke(main, ["convert", str(tmp_path / "c.pt"), "-v"]).output
    )
    assert culprit in str(caught.value)
    assert "`weights_only` set to `False`" not in told
    assert "\x1b" not in told
    assert "x1b" not in told


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_names_to_ignore_that_fit_nothing(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"m{suffix}"
    flashpack.save_file(MODEL, tmp_path / "m.flashpack")
    flashpack.commands.revert_from_flashpack(tmp_path / "m.flashpack", source)
    paths = [str(source), str(tmp_path / "out.flashpack")]
    ignored = ["--ignore-names", "bais", "--ignore-prefixes", "w"]
    result = CliRunner().invoke(main, ["convert", *paths, *ignored])
    assert result.exit_code == 0
    told = "ignore_names: 'bais' fits no tensor's name (did you mean 'bias'?)"
    assert result.stderr == f"Warning: flashpack: {told}\n"
    assert list(flashpack.load_file(tmp_path / "out.flashpack")) == ["bias"]


@pytest.mark.parametrize(
    ("options", "words"), [({"variant": "fp16"}, "variant"), ({"revision": "x"}, "revision")]
)
def test_options_that_do_not_apply(options: dict[str, str], words: str, tmp_path: Path) -> None:
    torch.save(MODEL, tmp_path / "m.pt")
    with pytest.warns(UserWarning, match=words):
        convert_to_flashpack(tmp_path / "m.pt", **options)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bf16", torch.bfloat16),
        ("BF16", torch.bfloat16),
        ("fp16", torch.float16),
        ("f16", torch.float16),
        ("half", torch.float16),
        ("fp32", torch.float32),
        ("torch.float", torch.float32),
        ("fp64", torch.float64),
        ("double", torch.float64),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_short_names_of_dtypes(name: str, dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"m{suffix}"
    flashpack.save_file(MODEL, tmp_path / "m.flashpack")
    flashpack.commands.revert_from_flashpack(tmp_path / "m.flashpack", source)
    made = convert_to_flashpack(source, tmp_path / "out.flashpack", dtype=name)
    assert_same(flashpack.load_file(made), {key: value.to(dtype) for key, value in MODEL.items()})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("bflaot16", "bfloat16"),
        ("float8", "float8_e4m3fn"),
        ("x", "bfloat16, float16, float32"),
        ("load", "bfloat16"),
    ],
)
def test_an_unknown_dtype_gets_suggestions(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"Unsupported dtype.*did you mean .*{meant}"):
        string_to_dtype(name)


@pytest.mark.parametrize("suffix", [".gguf", ".flashpack", ".onnx", ".h5", ".npz"])
def test_revert_to_a_name_of_another_format(suffix: str, tmp_path: Path) -> None:
    flashpack.save_file(MODEL, tmp_path / "m.flashpack")
    result = CliRunner().invoke(main, ["revert", str(tmp_path / "m.flashpack"), str(tmp_path / f"x{suffix}")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"cannot write {suffix}" in result.stderr
    assert not (tmp_path / f"x{suffix}").exists()


def test_revert_of_a_safetensors_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(MODEL, tmp_path / "m.safetensors")
    result = CliRunner().invoke(main, ["revert", str(tmp_path / "m.safetensors"), str(tmp_path / "out.pt")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "it is a safetensors file" in result.stderr


def test_a_repository_without_the_hub_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = CliRunner().invoke(main, ["convert", "someone/model"])
    assert result.exit_code == 1
    assert "pip install flashpack[hub]" in result.stderr
