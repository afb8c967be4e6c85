"""The arguments that a model was built with: kept in its file, and used to build it again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch

from .._core.errors import FlashPackError
from .._core.names import clipped, quoted, warn
from .._files.opened import OpenModel
from .._files.plain import from_json, to_json
from .._files.sources import ModelPath, model_path
from .._load.options import LoadOptions
from .._ranks.group import world_size_of
from .._ranks.load import load_together

# The key of the file's metadata: {"kept": {name: value}, "lost": {name: type}}.
KEY = "flashpack.arguments"
_HELD = "_flashpack_arguments"
# Those say where a model was, not what it is.
_OF_THE_PLACE = ("device", "rank", "local_rank", "world_size")


def remember(model: Any, signature: inspect.Signature, args: Any, kwargs: Any) -> None:
    """Keep the arguments that `model` is built with on it, as text: what changes later is not kept."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:  # the constructor says so; copies are made without arguments
        return
    kept: dict[str, str] = {}
    lost: dict[str, str] = {}
    given = set(bound.arguments)
    bound.apply_defaults()
    for name, value in bound.arguments.items():
        if (text := _text_of(value)) is not None:
            kept[name] = text
        elif name in given:
            lost[name] = type(value).__name__
    vars(model)[_HELD] = (kept, lost)


def _text_of(value: Any) -> str | None:
    try:
        return to_json(value, "")
    except ValueError:
        return None


def arguments_metadata(model: Any) -> dict[str, str]:
    """The metadata that keeps the arguments of `model`, if it has any."""
    kept, lost = vars(model).get(_HELD, ({}, {}))
    if not kept and not lost:
        return {}
    values = {name: json.loads(text) for name, text in kept.items()}
    return {KEY: json.dumps({"kept": values, "lost": lost}, separators=(",", ":"))}


def described_for(
    path: ModelPath, device: torch.device, options: LoadOptions
) -> tuple[ModelPath | OpenModel, dict[str, Any]]:
    """What to load from, opened if that is for this rank to do, and its footer.

    Where all ranks load together it is the footer of the rank that reads: others may lack the file.
    """
    if options.use_distributed_loading and world_size_of(options.world_size) > 1:
        with load_together(path, device, options) as file:
            return path, file.footer
    weights = OpenModel(model_path(path), options.cache_dir)
    return weights, weights.footer


def completed(
    signature: inspect.Signature, args: Any, kwargs: Mapping[str, Any], footer: Mapping[str, Any], shown: str
) -> inspect.BoundArguments:
    """`args` and `kwargs` for a constructor, and for what they lack the arguments that the file keeps.

    What the constructor has no parameter for is left out: it may be a subclass's. Warns of arguments that the
    file could not keep and nobody gives. Raises TypeError for arguments that the constructor does not take,
    FlashPackError for other metadata.
    """
    bound = signature.bind_partial(*args, **kwargs)
    kept, lost = _read(footer, shown)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and isinstance(kept.get(name), dict):
            bound.arguments[name] = {**kept[name], **bound.arguments.get(name, {})}
        elif name in kept and name not in _OF_THE_PLACE:
            bound.arguments.setdefault(name, kept[name])
    for name in lost.keys() & signature.parameters.keys() - bound.arguments.keys():
        warn(
            f"{shown} could not keep the argument {quoted(name)}, of {lost[name]}: pass it to from_flashpack"
        )
    _close_gaps(bound)
    return bound


def _close_gaps(bound: inspect.BoundArguments) -> None:
    """Give the defaults to what comes before `*args`, which would be taken for a keyword after a gap.

    Without a default for the gap `*args` is dropped: the constructor tells what it lacks.
    """
    parameters = list(bound.signature.parameters.values())
    stars = [index for index, each in enumerate(parameters) if each.kind is each.VAR_POSITIONAL]
    if not stars or parameters[stars[0]].name not in bound.arguments:
        return
    gaps = [each for each in parameters[: stars[0]] if each.name not in bound.arguments]
    if any(gap.default is gap.empty for gap in gaps):
        del bound.arguments[parameters[stars[0]].name]
    else:
        bound.arguments.update({gap.name: gap.default for gap in gaps})


def _read(footer: Mapping[str, Any], shown: str) -> tuple[dict[str, Any], dict[str, str]]:
    text = footer.get("metadata", {}).get(KEY)
    if text is None:
        return {}, {}
    values = from_json(text, shown, {})
    kept, lost = (values.get(key) if isinstance(values, dict) else None for key in ("kept", "lost"))
    if not isinstance(kept, dict) or not isinstance(lost, dict):
        raise FlashPackError(f"{shown}: metadata {KEY!r} holds no arguments: {clipped(text)}")
    return kept, lost
