"""hf:// while somebody pushes: all that a load reads is of one commit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel, VQModel
from flashpack.integrations.diffusers import AutoFlashPackModel
from flashpack.integrations.diffusers.pipeline import load_pipeline, save_pipeline
from flashpack.integrations.transformers import AutoModel
from hub_server import serving
from hub_store import Hub, PushAt
from patience import within
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel

REPOSITORY = "tiny/pushed"
URL = f"hf://{REPOSITORY}"
MOST_REQUESTS = 60


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as made:
        for name, value in made.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        yield made


def loads_beside_a_push(
    hub: Hub, save: Callable[[float, Path], object], folder: Path, load: Callable[[], Any], every: int = 1
) -> Iterator[Any]:
    """What `load` gives of a model of 1.0 when one of -1.0 is pushed before the first answer, the second."""
    for value in (1.0, -1.0):
        save(value, folder / str(value))
    newer = folder / "-1.0"
    files = {path.relative_to(newer).as_posix(): path.read_bytes() for path in newer.rglob("*.*")}
    for number in range(1, MOST_REQUESTS, every):
        hub.add(REPOSITORY, folder / "1.0")
        hub.requests = PushAt(hub, REPOSITORY, files, number)
        yield within(load)
        if len(hub.requests) < number:  # nothing was pushed any more
            assert number > 3
            return
    raise AssertionError(f"no load makes {MOST_REQUESTS} requests")


def filled(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def values(*models: nn.Module) -> set[float]:
    return {
        value for model in models for parameter in model.parameters() for value in parameter.unique().tolist()
    }


@pytest.mark.parametrize("name", ["/model.safetensors.index.json", ""])
def test_shards(name: str, hub: Hub, tmp_path: Path) -> None:
    def save(value: float, folder: Path) -> None:
        folder.mkdir()
        shards = {f"model-0000{number}-of-00002.safetensors": f"l{number}" for number in (1, 2)}
        for shard, tensor in shards.items():
            save_file({tensor: torch.full((20_000,), value)}, folder / shard)
        index = {"metadata": {}, "weight_map": {tensor: shard for shard, tensor in shards.items()}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    for loaded in loads_beside_a_push(hub, save, tmp_path, lambda: flashpack.load_file(URL + name)):
        assert len({value for tensor in loaded.values() for value in tensor.unique().tolist()}) == 1


def test_a_model_and_its_configuration(hub: Hub, tmp_path: Path) -> None:
    def save(value: float, folder: Path) -> None:
        config = BertConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            mark=value,
        )
        flashpack.pack_to_file(filled(BertModel(config), value), folder / "model.flashpack")
        config.save_pretrained(folder)

    for model in loads_beside_a_push(hub, save, tmp_path, lambda: AutoModel.from_pretrained_flashpack(URL)):
        assert values(model) == {model.config.mark}


def save_two_models(value: float, folder: Path) -> None:
    """A pipeline of two models and their scheduler."""
    blocks: dict[str, Any] = {"block_out_channels": (4,), "norm_num_groups": 2}
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        **blocks,
    )
    unet.register_to_config(sample_size=8 if value > 0 else 16)
    scheduler = DDIMScheduler(num_train_timesteps=8 if value > 0 else 16)
    pipeline = LDMPipeline(filled(VQModel(**blocks), value), filled(unet, value), scheduler)
    save_pipeline(pipeline, folder)


def test_a_pipeline(hub: Hub, tmp_path: Path) -> None:
    def load() -> Any:
        return load_pipeline(LDMPipeline, URL)

    for made in loads_beside_a_push(hub, save_two_models, tmp_path, load, every=4):
        assert len(values(made.vqvae, made.unet)) == 1
        assert made.scheduler.config.num_train_timesteps == made.unet.config.sample_size


def test_a_model_of_a_pipeline(hub: Hub, tmp_path: Path) -> None:
    def load() -> Any:
        return AutoFlashPackModel.from_pretrained_flashpack(URL, subfolder="unet")

    for model in loads_beside_a_push(hub, save_two_models, tmp_path, load):
        assert values(model) == {1.0 if model.config.sample_size == 8 else -1.0}
