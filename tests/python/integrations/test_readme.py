"""Every snippet and command of the README, the guides and the reference, run as it is written, in one go."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakecuda
import flashpack
import pytest
import readme_classes
import tiny_pipelines
import torch
from hub_server import serving
from hub_store import Hub
from processes import environment, python, succeed
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel

ROOT = Path(__file__).parents[3]
# In the order in which they are read: what one makes the next may use.
PAGES = (
    *("README.md", "docs/guides/loading.md", "docs/guides/hugging-face.md"),
    *("docs/guides/training.md", "docs/guides/libraries.md", "docs/guides/ranks.md"),
    *("docs/guides/serving.md", "docs/guides/object-storage.md", "docs/guides/slow-loads.md"),
    *("docs/guides/deployment.md", "docs/guides/questions.md"),
    *("docs/guides/look.md", "docs/guides/compression.md", "docs/reference/command-line.md"),
    *("docs/reference/environment.md", "docs/reference/operators.md", "docs/reference/python.md"),
    "docs/reference/api.md",
)
TEXT = "".join((ROOT / page).read_text() for page in PAGES)


def test_no_page_is_left_out() -> None:
    folders = ("docs/guides", "docs/reference")
    found = {str(page.relative_to(ROOT)) for folder in folders for page in (ROOT / folder).glob("*.md")}
    assert found == set(PAGES[1:]), "each page has its turn in PAGES"


def test_each_page_is_found_from_the_readme_and_in_the_site() -> None:
    readme, site = (ROOT / "README.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        if page != "docs/reference/api.md":  # which only the site can show
            assert f"]({page})" in readme, f"no link of README.md leads to {page}"
        assert f"- {page.removeprefix('docs/')}\n" in site, f"the nav of mkdocs.yml lacks {page}"


def snippets(language: str) -> list[str]:
    """The pages' blocks of this language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


PYTHON = [code for code in snippets("python") if 'device="cuda"' not in code]
CUDA = [code for code in snippets("python") if 'device="cuda"' in code]
COMMANDS = [line for code in snippets("bash") for line in code.splitlines() if not line.startswith("make ")]


def bert() -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The repositories that the README names."""
    model, other = tiny_pipelines.unet(), tiny_pipelines.autoencoder()
    namespace = vars(readme_classes).copy()
    exec(
        PYTHON[[("FlashPackMyPipeline" in code) for code in PYTHON].index(True)].partition("\n\n\npipeline")[
            0
        ],
        namespace,
    )
    pipeline = namespace["FlashPackMyPipeline"](model, other)
    pipeline.save_pretrained(tmp_path / "plain")
    pipeline.save_pretrained_flashpack(tmp_path / "packed")
    bert().save_pretrained(tmp_path / "bert")
    model.save_pretrained(tmp_path / "unet" / "unet")
    with serving() as hub:
        hub.add("some/repository", tmp_path / "plain")
        hub.add("my/flashpack-repository", tmp_path / "packed")
        hub.add("some/bert", tmp_path / "bert")
        hub.add("some/repo-id", tmp_path / "unet")
        yield hub


def folder_in(tmp_path: Path) -> Path:
    """A folder to run things in."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def run_python() -> None:
    model = nn.Linear(5, 4)
    namespace: dict[str, Any] = {**vars(readme_classes), "model": model}
    with socket.socket() as free:  # as torchrun would for one rank
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), namespace)
    assert torch.equal(flashpack.load_file("model.flashpack")["weight"], model.weight)
    assert type(namespace["pipeline"]).__name__ == "FlashPackMyPipeline"
    assert Path("some_directory", "my_model", "model.flashpack").is_file()
    assert namespace["bert"].dtype == torch.bfloat16
    assert torch.equal(namespace["parts"]["linear.weight"], namespace["loaded"].linear.weight)
    assert torch.equal(namespace["module"].linear.weight.full_tensor(), namespace["loaded"].linear.weight)
    torch.distributed.destroy_process_group()


def test_python(hub: Hub, tmp_path: Path) -> None:
    """In an interpreter of its own: diffusers asks only once where the hub is."""
    env = environment(**hub.environment(tmp_path / "cache"))
    succeed(python("-c", "import test_readme; test_readme.run_python()", env=env, cwd=folder_in(tmp_path)))


def cuda(code: str) -> None:
    model = nn.Linear(5, 4)
    flashpack.pack_to_file(model, "model.flashpack")
    other = nn.Linear(5, 4)
    flashpack.pack_to_file(other, "other.flashpack")
    exec(code, {"flashpack": flashpack, "model": model})
    assert model.weight.device.type == "cuda"
    assert torch.equal(model.weight.cpu(), other.weight)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("code", CUDA)
def test_cuda(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fakecuda.call(cuda, code, mode="strict").check()


def test_commands(hub: Hub, tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    bert().save_pretrained(folder / "my_model")
    save_file({"weight": torch.ones(3)}, folder / "model.safetensors")
    for key in ("private.pem", "public.pem"):
        shutil.copy(Path(__file__).parents[2] / "fixtures" / "keys" / key, folder)
    program = tmp_path / "bin" / "flashpack"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom flashpack.__main__ import main\nmain()\n")
    program.chmod(0o755)
    program.with_name("python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.with_name("python").chmod(0o755)
    env = environment(**hub.environment(tmp_path / "cache"))
    env["PATH"] = os.pathsep.join([str(program.parent), env["PATH"]])
    commands = "\n".join(COMMANDS)
    assert commands.count("flashpack ") >= 6
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    succeed(done)
    made = {path.name for path in folder.iterdir()}
    assert {"my_model.flashpack", "model.flashpack", "my_model.safetensors"} <= made
