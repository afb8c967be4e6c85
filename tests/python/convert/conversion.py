"""What the tests of conversion convert."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from helpers import listing, noise
from safetensors.torch import save_file
from torch import Tensor


def some_tensors() -> dict[str, Tensor]:
    return {
        "block.0.weight": noise(torch.float32, (6, 5), seed=1),
        "block.0.bias": noise(torch.float16, (6,), seed=2),
        "block.1.weight": noise(torch.bfloat16, (7, 3), seed=3),
        "scale": torch.tensor(0.125),
        "steps": torch.tensor(2301),
        "mask": noise(torch.bool, (9,), seed=4),
        "none": torch.empty(4, 0),
    }


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones included, with its content."""
    return {name: (folder / name).read_bytes() for name in listing(folder) if (folder / name).is_file()}


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """As safetensors or, under any other suffix, as torch's own file."""
    if path.suffix.lower() == ".safetensors":
        save_file(dict(tensors), path)
    else:
        with path.open("wb") as file:  # by itself torch.save refuses some names
            torch.save(dict(tensors), file)


def write_shards(folder: Path, stem: str, shards: Mapping[str, Mapping[str, Tensor]], **index: Any) -> None:
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for shard, part in shards.items():
        suffix = Path(shard).suffix
        save_file(dict(part), folder / shard) if suffix == ".safetensors" else torch.save(
            dict(part), folder / shard
        )
        weight_map.update(dict.fromkeys(part, shard))
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map, **index}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(content))


def sharded(suffix: str, stem: str = "model") -> dict[str, dict[str, Tensor]]:
    given = some_tensors()
    names = list(given)
    return {
        f"{stem}-0000{number + 1}-of-00003{suffix}": {name: given[name] for name in names[number::3]}
        for number in range(3)
    }
