"""What serving engines are handed: a checkpoint's tensors in turn. `make vllm` tests a whole engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack import ChecksumError
from flashpack._hub.client import HubOptions
from flashpack.integrations import _serving
from flashpack.integrations._serving import ServingOptions, checkpoint_tensors, find_checkpoint
from helpers import MIB, assert_same, flip_byte, listing, noise, place_of
from hub_server import connect, serving
from hub_store import Hub
from processes import python, succeed
from torch import Tensor

CPU = torch.device("cpu")
MAPPED, READ = ServingOptions(mapped=True), ServingOptions(mapped=False)


def weights() -> dict[str, Tensor]:
    return {f"layers.{number}": noise(torch.bfloat16, (64, 33), number) for number in range(12)} | {
        "norm": noise(torch.float32, (5,), 99),
        "empty": torch.empty(0, 3),
        "step": torch.tensor(2301),
    }


@pytest.fixture(params=["whole", "shards"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    limit = None if request.param == "whole" else 10_000
    flashpack.pack_to_file(weights(), tmp_path / "model.flashpack", max_shard_size=limit)
    return Path(find_checkpoint(tmp_path, HubOptions()))


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_serving, "WINDOW_BYTES", 9000)  # two layers


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("options", [MAPPED, READ, ServingOptions(), ServingOptions(verify=True)])
def test_every_tensor_comes_once(checkpoint: Path, options: ServingOptions) -> None:
    pairs = list(checkpoint_tensors(checkpoint, CPU, options))
    assert sorted(name for name, _ in pairs) == sorted(weights())
    assert_same(dict(pairs), weights())


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("options", [MAPPED, READ])
def test_unwanted_tensors_do_not_come(checkpoint: Path, options: ServingOptions) -> None:
    pairs = dict(checkpoint_tensors(checkpoint, CPU, options, lambda name: not name.startswith("layers")))
    assert_same(pairs, {name: weights()[name] for name in ("norm", "empty", "step")})


def test_tied_tensors_come_by_both_names(path: Path) -> None:
    tensor = noise(torch.float32, (5, 7), 1)
    flashpack.save_file({"embedding": tensor, "head": tensor}, path)
    for options in (MAPPED, READ):
        assert_same(dict(checkpoint_tensors(path, CPU, options)), {"embedding": tensor, "head": tensor})


@pytest.mark.usefixtures("small_windows")
def test_damage_is_found_before_the_tensor_is_handed_out(path: Path) -> None:
    flashpack.save_file(weights(), path)
    flip_byte(path, place_of(path, "layers.8")[0])
    with pytest.raises(ChecksumError, match=re.escape(str(path))):
        dict(checkpoint_tensors(path, CPU, READ))
    with pytest.raises(ChecksumError, match=re.escape(str(path))):
        next(checkpoint_tensors(path, CPU, ServingOptions(mapped=True, verify=True)))
    unverified = dict(checkpoint_tensors(path, CPU, ServingOptions(mapped=False, verify=False)))
    assert unverified.keys() == weights().keys()


@pytest.mark.usefixtures("small_windows")
def test_files_that_are_replaced_meanwhile_are_loaded_as_they_were(checkpoint: Path) -> None:
    pairs = checkpoint_tensors(checkpoint, CPU, READ)
    loaded = dict([next(pairs)])
    limit = None if checkpoint.suffix == ".flashpack" else 10_000
    others = {name: torch.zeros_like(tensor) for name, tensor in weights().items()}
    flashpack.pack_to_file(others, checkpoint.with_name("model.flashpack"), max_shard_size=limit)
    assert_same({**loaded, **dict(pairs)}, weights())


# In a process of its own, whose memory nobody else takes or gives back.
MEMORY = """
import re, sys
from pathlib import Path
import torch
from flashpack.integrations import _serving

def anonymous_memory():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

_serving.WINDOW_BYTES = 8 << 20
options = _serving.ServingOptions(mapped=sys.argv[2] == "mapped")
before, peak, seen = anonymous_memory(), 0, 0
for _, tensor in _serving.checkpoint_tensors(Path(sys.argv[1]), torch.device("cpu"), options):
    seen += int(tensor[::1024].sum())
    peak = max(peak, anonymous_memory() - before)
assert seen == sum(range(32)) * 1024
print(peak)
"""


@pytest.mark.parametrize(("way", "most"), [("mapped", 4 * MIB), ("read", 3 * 8 * MIB)])
def test_it_takes_little_memory(path: Path, way: str, most: int) -> None:
    flashpack.save_file({f"layers.{n}": torch.full((MIB,), n, dtype=torch.int32) for n in range(32)}, path)
    assert int(succeed(python("-c", MEMORY, path, way))) <= most


@pytest.mark.parametrize(
    ("mapped", "device", "ranks", "maps"),
    [
        (None, "cpu", 1, True),
        (None, "cuda", 1, False),
        (None, "cuda", 2, True),  # each takes its part of the mapping
        (None, "xpu", 1, True),
        (False, "cuda", 2, False),
        (False, "cpu", 1, False),
        (True, "cuda", 1, True),
    ],
)
def test_where_it_maps(
    mapped: bool | None, device: str, ranks: int, maps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert ServingOptions(mapped=mapped).maps(torch.device(device)) is maps
    if mapped is None:
        monkeypatch.setattr(torch.version, "cuda", None)  # torch for ROCm calls its devices "cuda", too
        assert ServingOptions().maps(torch.device(device))


def test_options_are_checked() -> None:
    assert ServingOptions.take(None) == ServingOptions.take({}) == ServingOptions()
    assert ServingOptions.take({"mapped": True, "verify": False}) == ServingOptions(True, False)
    with pytest.raises(ValueError, match=r"unknown in the loader's extra config: \['eager'\]"):
        ServingOptions.take({"eager": True})
    with pytest.raises(ValueError, match="mapped in the loader's extra config must be true or false, not 1"):
        ServingOptions.take({"mapped": 1})
    with pytest.raises(ValueError, match="must be a mapping, not list"):
        ServingOptions.take([True])


def test_folders_without_one_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"No \.flashpack weights in the folder"):
        find_checkpoint(tmp_path, HubOptions())
    for name in ("a", "b"):
        flashpack.save_file(weights(), tmp_path / f"{name}.flashpack")
    with pytest.raises(ValueError, match=r"which of these is meant\? a\.flashpack, b\.flashpack"):
        find_checkpoint(tmp_path, HubOptions())
    (tmp_path / "b.flashpack").unlink()
    assert find_checkpoint(tmp_path, HubOptions()) == str(tmp_path / "a.flashpack")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as server:
        connect(server, monkeypatch, tmp_path / "cache")
        yield server


def test_a_repository_gives_its_flashpack_files_of_the_revision(hub: Hub, tmp_path: Path) -> None:
    flashpack.pack_to_file(weights(), tmp_path / "model.flashpack", max_shard_size=10_000)
    files: dict[str, Any] = {path.name: path.read_bytes() for path in tmp_path.glob("*.flashpack*")}
    hub.add("tiny/llm", {"model.flashpack": b"newer"})
    hub.add("tiny/llm", {**files, "model.safetensors": b"", "config.json": b"{}"}, revision="v1")
    options = HubOptions(revision="v1", cache_dir=tmp_path / "elsewhere")
    found = Path(find_checkpoint("tiny/llm", options))
    assert found.is_relative_to(tmp_path / "elsewhere")
    assert listing(found.parent) == set(files)
    assert_same(dict(checkpoint_tensors(found, CPU, READ)), weights())
