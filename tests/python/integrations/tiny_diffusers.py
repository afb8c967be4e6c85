"""Tiny configurations of diffusers' models, of every family, and the models that they make.

A name is a class's, with a word behind a colon where there are several configurations of it.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import torch

# In this file, as objects of JSON; most sizes are the smallest that the class allows.
CONFIGS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
)


def class_of(name: str) -> Any:
    """The class of a configuration."""
    found: Any = getattr(diffusers, name.partition(":")[0])
    assert inspect.isclass(found), name
    return found


def build(name: str) -> Any:
    """A model of that configuration, the same every time, none of whose parameters is zero everywhere."""
    torch.manual_seed(0)
    model = class_of(name)(**CONFIGS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    return model
