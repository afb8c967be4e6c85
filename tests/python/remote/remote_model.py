"""The model that the store holds in each form, and loads of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import flashpack
import safetensors.torch
import torch
from faultstore import Request, Store
from helpers import MIB, assert_same, noise
from patience import within
from torch import Tensor

FOLDER = "s3://bucket/folder"
URL = f"{FOLDER}/model.flashpack"
SAFETENSORS = f"{FOLDER}/model.safetensors"
SHARDS = "s3://bucket/shards/model.flashpack"
TORCH_SHARDS = "s3://bucket/hub/model.safetensors.index.json"


@functools.cache
def tensors() -> dict[str, Tensor]:
    """Enough for several requests."""
    return {f"t{number}": noise(torch.uint8, (7 * MIB + number,), number) for number in range(4)}


def write(bucket: Path) -> None:
    """All forms, and a `.changed` one for the first."""
    for name in ("folder", "shards", "hub"):
        (bucket / name).mkdir(parents=True)
    flashpack.save_file(tensors(), bucket / "folder/model.flashpack")
    others = {name: tensor.flip(0) for name, tensor in tensors().items()}
    flashpack.save_file(others, bucket / "folder/model.flashpack.changed")
    safetensors.torch.save_file(tensors(), bucket / "folder/model.safetensors")
    safetensors.torch.save_file(others, bucket / "folder/model.safetensors.changed")
    flashpack.save_file(tensors(), bucket / "shards/model.flashpack", max_shard_size=15 * MIB)
    _save_sharded(tensors(), bucket / "hub")


def _save_sharded(state: Mapping[str, Tensor], folder: Path) -> None:
    import json

    places = {name: f"model-{1 + number // 2:05}-of-00002.safetensors" for number, name in enumerate(state)}
    for file in set(places.values()):
        part = {name: state[name] for name, place in places.items() if place == file}
        safetensors.torch.save_file(part, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def by_handle(url: str) -> Mapping[str, Tensor]:
    with flashpack.open(url) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def module() -> torch.nn.Module:
    made = torch.nn.Module()
    for name, tensor in tensors().items():
        made.register_buffer(name, torch.zeros_like(tensor))
    return made


def into_module(url: str, **options: bool) -> Mapping[str, Tensor]:
    model = module()
    flashpack.assign_from_file(model, url, **options)
    return dict(model.state_dict())


LOADS: dict[str, Callable[[str], Mapping[str, Tensor]]] = {
    "load_file": flashpack.load_file,
    "not eager": lambda url: flashpack.load_file(url, eager=False),
    "not verified": lambda url: flashpack.load_file(url, verify=False),
    "names": lambda url: flashpack.load_file(url, names=list(tensors())[::-1]),
    "open": by_handle,
    "into a module": into_module,
    "in place": lambda url: into_module(url, in_place=True),
}


def load(store: Store, url: str, *faults: dict[str, object], **settings: object) -> list[Request]:
    """The requests of a load that gives the right bytes, with a plan of these faults."""
    store.plan(*faults, **settings)
    assert_same(within(lambda: flashpack.load_file(url)), tensors())
    return store.take()
