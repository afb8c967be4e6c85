"""Every command on a terminal of 80 columns, of 120, and into a pipe: what people see, kept as text.

Set UPDATE_TRANSCRIPTS=1 to write the texts anew; then look at what changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import flashpack
import pytest
import torch
from command_line import HELP, saved, tensors
from helpers import FIXTURES
from processes import environment, python, succeed
from terminals import on_terminal

TRANSCRIPTS = Path(__file__).parent / "transcripts"
RUNNER = Path(__file__).with_name("transcript.py")
LONG = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
COMMANDS = [
    "convert model.safetensors",
    "convert model.safetensors signed.flashpack --checksum blake3",
    "convert model.flashpack small.flashpack --compress fast",
    "convert model.flashpack shards.flashpack --max-shard-size 1600B",
    "ls model.flashpack",
    "ls -l shards.flashpack",
    "ls other.flashpack",
    "ls -d 1 model.flashpack",
    "ls model.flashpack encoders",
    "metadata model.flashpack",
    "metadata -i small.flashpack",
    "diff model.flashpack small.flashpack",
    "diff model.flashpack other.flashpack",
    "extract model.flashpack encoder.flashpack encoder",
    "extract other.flashpack decoder.flashpack decoder",
    "merge encoder.flashpack other.flashpack both.flashpack",
    "merge encoder.flashpack decoder.flashpack both.flashpack",
    "rename encoder.flashpack 'encoder.*' 'model.*'",
    "edit-metadata encoder.flashpack --set note=first --remove made",
    "sign signed.flashpack --key private.pem",
    "verify model.flashpack old.flashpack damaged.flashpack",
    "verify signed.flashpack --key public.pem",
    "explain model.flashpack",
    "explain model.flashpack --eager",
    "bench model.flashpack --rounds 1",
    "revert model.flashpack back.safetensors",
    "revert model.flashpack back.safetensors -q",
    "-q revert model.flashpack back.safetensors",
    "revert missing.flashpack",
    "unknown",
    "-h",
    *(f"{command} -h" for command in sorted(HELP)),
]
MEASURED = ("explain model", "bench model")
NUMBER = re.compile(r" *\d[\d.]*(?: ?[kMGnµm]?[Bs]\b)?(?:/s)?")
STYLE = re.compile(r"\x1b\[[\d;]*m")


COLUMNS = {"80": 80, "120": 120, "pipe": None}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    saved(tmp_path / "model.safetensors")
    changed = {**tensors(), LONG: torch.ones(3, dtype=torch.bfloat16)}
    changed["head.weight"] += 1
    flashpack.save_file(changed, tmp_path / "other.flashpack")
    damaged = bytearray((tmp_path / "other.flashpack").read_bytes())
    damaged[10] ^= 1
    (tmp_path / "damaged.flashpack").write_bytes(damaged)
    shutil.copy(FIXTURES / "v4_scalars.flashpack", tmp_path / "old.flashpack")
    for key in ("private.pem", "public.pem"):
        shutil.copy(FIXTURES / "keys" / key, tmp_path)
    return tmp_path


def transcript(models: Path, columns: int | None, **variables: str) -> str:
    """All that the commands print, but for the folder, and for measured numbers."""
    words = (RUNNER, json.dumps(COMMANDS))
    if columns is None:
        text = succeed(python(*words, cwd=models, env=environment(PYTHONUNBUFFERED="1")))
    else:
        code, text = on_terminal(*words, columns=columns, lines=100, cwd=models, **variables)
        assert code == 0, text
    parts = text.replace("\r\n", "\n").replace(f"{models}/", "").split("$ flashpack ")
    return "$ flashpack ".join(NUMBER.sub("#", part) if part.startswith(MEASURED) else part for part in parts)


@pytest.mark.parametrize("where", COLUMNS)
def test_what_every_command_prints(where: str, models: Path) -> None:
    styled = transcript(models, COLUMNS[where])
    assert bool(STYLE.search(styled)) is (where != "pipe")
    text = STYLE.sub("", styled)
    kept = TRANSCRIPTS / f"{where}.txt"
    if os.environ.get("UPDATE_TRANSCRIPTS"):
        kept.write_text(text)
    assert text == kept.read_text()


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_terminals_without_styles(variables: dict[str, str], models: Path) -> None:
    assert transcript(models, 80, **variables) == (TRANSCRIPTS / "80.txt").read_text()
