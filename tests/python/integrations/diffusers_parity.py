"""Compares loads of FlashPack folders with diffusers' own of safetensors: models and pipelines.

As a program (`make parity`) it takes every configuration there is, or those named.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import tiny_diffusers
import torch
import transformers
from flashpack.integrations.diffusers import load_model, save_model
from flashpack.integrations.diffusers.pipeline import load_pipeline, save_pipeline
from parity import Difference, differences
from torch import nn

DTYPES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn)
LEAST = {"models": 105, "pipelines": 16}  # a run of everything that compares fewer has lost some


def compare(
    name: str, folder: Path, own: torch.dtype, dtypes: Iterable[torch.dtype | None] = DTYPES
) -> Iterator[Difference]:
    """What differs when a model that diffusers has loaded as `own` is saved, and loaded with each dtype.

    None stands for the file's, which diffusers has to be told.
    """
    cls = tiny_diffusers.class_of(name)
    tiny_diffusers.build(name).save_pretrained(folder / "first")
    model = cls.from_pretrained(folder / "first", torch_dtype=own)
    model.save_pretrained(folder / "own")
    save_model(model, folder / "packed")
    for dtype in dtypes:
        expected = cls.from_pretrained(folder / "own", torch_dtype=dtype or own)
        actual = load_model(cls, folder / "packed", dtype=dtype)
        for difference in differences(actual, expected):
            yield name, own, dtype, *difference
        if {**actual.config, "_name_or_path": ""} != {**expected.config, "_name_or_path": ""}:
            yield name, own, dtype, "config"


def compare_pipelines(name: str, folder: Path, own: torch.dtype) -> Iterator[Difference]:
    """What differs when a pipeline that diffusers loaded as `own` loads from a folder and from one file."""
    kind, absent = getattr(diffusers, name), tiny_diffusers.absent(name)
    tiny_diffusers.pipeline(name).save_pretrained(folder / "first")
    pipeline = kind.from_pretrained(folder / "first", torch_dtype=own, **absent)
    pipeline.save_pretrained(folder / "own")
    first = next(place for place, part in pipeline.components.items() if isinstance(part, nn.Module))
    for saved in (folder / "packed", folder / "one.flashpack"):
        save_pipeline(pipeline, saved)
        for dtype in (None, torch.float32, torch.float16, {first: torch.bfloat16}):
            expected = kind.from_pretrained(folder / "own", torch_dtype=dtype or own, **absent)
            actual = load_pipeline(kind, saved, dtype=dtype, **absent)
            for difference in pipeline_differences(actual, expected):
                yield name, own, saved.name, dtype, *difference


def pipeline_differences(actual: Any, expected: Any) -> Iterator[Difference]:
    """Each component that is of another class, or whose tensors differ."""
    for place, component in expected.components.items():
        other = actual.components[place]
        if type(other) is not type(component):
            yield place, type(other), type(component)
        elif isinstance(component, nn.Module):
            for difference in differences(other, component):
                yield place, *difference


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    kinds = {
        "models": (tiny_diffusers.CONFIGS, compare),
        "pipelines": (tiny_diffusers.PIPELINES, compare_pipelines),
    }
    if unknown := set(names).difference(*(known for known, _ in kinds.values())):
        sys.exit(f"no such models or pipelines: {sorted(unknown)}")
    failed = False
    for kind, (known, check) in kinds.items():
        chosen = [name for name in known if name in (names or known)]
        differing = [name for name in chosen if differs(name, check)]
        print(f"{len(differing)} of {len(chosen)} {kind} differ", flush=True)
        failed |= bool(differing) or (not names and len(chosen) < LEAST[kind])
    return int(failed)


def differs(name: str, check: Callable[[str, Path, torch.dtype], Iterable[Difference]]) -> bool:
    """Whether `check` finds a difference, of single or of half precision; prints each."""
    found = []
    for own in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder:
            for difference in check(name, Path(folder), own):
                found.append(difference)
                print(*difference, flush=True)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
