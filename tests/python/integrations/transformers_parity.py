"""Compares loads of FlashPack folders with transformers' own of safetensors, over its architectures.

As a program (`make parity`) it takes every architecture that it can build, or those named.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from flashpack.commands import convert_to_flashpack
from flashpack.integrations.transformers import load_model, save_model
from tiny_architectures import base_class, built, config_of, head_classes, named_tensors, ties
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

DTYPES = (None, "auto", torch.float16, torch.bfloat16, torch.float32)
LARGEST = 10_000_000  # parameters; a larger one is none of the tiny

# Half-precision models whose first parameter stays single: transformers notes and loads all as that one.
DTYPES_LOST = ("xlnet",)

Difference = tuple[Any, ...]


def seeded(load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What it loads, fresh weights and all, as it comes after one seed."""
    torch.manual_seed(0)
    return load(*arguments, **options)


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Equal in dtype, shape and every bit, not-a-numbers among them."""
    if (one.dtype, one.shape, one.is_meta) != (other.dtype, other.shape, other.is_meta):
        return False
    raw = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.is_meta or torch.equal(*raw)


def differences(actual: PreTrainedModel, expected: PreTrainedModel) -> Iterator[Difference]:
    """What sets the models apart: a tensor, a tie, the configured dtype."""
    got, wanted = named_tensors(actual), named_tensors(expected)
    if got.keys() != wanted.keys():
        yield "names", sorted(got.keys() ^ wanted.keys())
    for name in got.keys() & wanted.keys():
        if not same_bytes(got[name], wanted[name]):
            yield name, got[name].dtype, wanted[name].dtype, got[name].shape, wanted[name].shape
    if ties(actual) != ties(expected):
        yield "ties", ties(actual), ties(expected)
    if str(actual.config.dtype) != str(expected.config.dtype):
        yield "config.dtype", actual.config.dtype, expected.config.dtype


def saved(model: PreTrainedModel, folder: Path) -> dict[str, Path]:
    """Folders of the model: safetensors, FlashPack, and FlashPack that was converted from safetensors."""
    folders = {name: folder / name for name in ("safetensors", "packed", "converted")}
    model.save_pretrained(folders["safetensors"])
    save_model(model, folders["packed"])
    shutil.copytree(folders["safetensors"], folders["converted"])
    convert_to_flashpack(folders["converted"])
    return folders


def compare_dtypes(kind: type[PreTrainedModel], config: Any, folder: Path) -> Iterator[Difference]:
    """What differs when a model of `kind`, of single and of half precision, loads with each dtype."""
    built(kind, config).save_pretrained(folder / "first")
    for own in (torch.float32, torch.bfloat16):
        folders = saved(kind.from_pretrained(folder / "first", dtype=own), folder / str(own))
        for dtype in DTYPES:
            if kind.config_class.model_type in DTYPES_LOST and dtype in (None, "auto"):
                continue
            expected = seeded(kind.from_pretrained, folders["safetensors"], dtype=dtype)
            for name in ("packed", "converted"):
                actual = seeded(load_model, kind, folders[name], dtype=dtype)
                for difference in differences(actual, expected):
                    yield own, dtype, name, *difference


def compare_classes(
    stored: type[PreTrainedModel], loaded: type[PreTrainedModel], config: Any, folder: Path
) -> Iterator[Difference]:
    """What differs when a file of one class loads into another of its family, reports included."""
    folders = saved(built(stored, config), folder)
    expected, wanted = seeded(loaded.from_pretrained, folders["safetensors"], output_loading_info=True)
    for name in ("packed", "converted"):
        actual, info = seeded(load_model, loaded, folders[name], output_loading_info=True)
        for difference in differences(actual, expected):
            yield stored.__name__, loaded.__name__, name, *difference
        for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if sorted(info[keys]) != sorted(wanted[keys]):
                yield stored.__name__, loaded.__name__, name, keys, info[keys], sorted(wanted[keys])


def compare(model_type: str, folder: Path) -> Iterator[Difference]:
    """Everything that differs for an architecture, its base and heads out of each other's files included."""
    config, base = config_of(model_type), base_class(model_type)
    yield from compare_dtypes(base, config, folder / "dtypes")
    for number, head in enumerate(head_classes(model_type)):
        yield from compare_classes(head, base, config, folder / f"base{number}")
        yield from compare_classes(base, head, config, folder / f"head{number}")


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    differing = 0
    for model_type in names or sorted(MODEL_MAPPING_NAMES):
        with tempfile.TemporaryDirectory() as folder:
            found = list(compare(model_type, Path(folder)))
        differing += bool(found)
        for difference in found:
            print(model_type, *difference, flush=True)
    print(f"{differing} differ")
    return differing


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
