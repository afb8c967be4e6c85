"""Compares loads of FlashPack folders with diffusers' own of safetensors, over its models.

As a program (`make parity`) it takes every configuration there is, or those named.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import diffusers
import tiny_diffusers
import torch
from flashpack.integrations.diffusers import load_model, save_model
from parity import Difference, differences

DTYPES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn)


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


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    chosen = names or list(tiny_diffusers.CONFIGS)
    differing = set()
    for name in chosen:
        for own in (torch.float32, torch.bfloat16):
            with tempfile.TemporaryDirectory() as folder:
                for difference in compare(name, Path(folder), own):
                    differing.add(name)
                    print(*difference, flush=True)
    print(f"{len(differing)} of {len(chosen)} configurations differ")
    return len(differing)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
