"""Nested Python values as JSON and back, exactly; tensors among them by name. All else is refused."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._core.errors import FlashPackError
from .._core.names import clipped, quoted

# What marks an object that stands for something JSON has not, and what tells which.
_MARK = "$"
_OF = "of"
_SEQUENCES: dict[str, Callable[[Iterable[Any]], Any]] = {"tuple": tuple, "Size": torch.Size}
_MAPPINGS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": lambda pairs: Counter(dict(pairs)),
}


class _AbsentError(Exception):
    """A tensor that a file lacks, as one does that was made of a checkpoint."""


def to_json(value: Any, where: str, tensors: dict[str, Tensor] | None = None) -> str:
    """`value` as JSON text. Its tensors go into `tensors` under names made of the keys that lead to them.

    Dicts, lists, tuples, strings, numbers, bools, None, and torch's dtypes, devices and sizes are plain.
    Raises ValueError that says where anything else is, tensors too if `tensors` is None; `where` names
    `value`.
    """
    try:
        return json.dumps(_encode(value, where, "", tensors), allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError(f"{where}: is nested too deeply, or holds itself") from None


def from_json(text: str, shown: str, tensors: Mapping[str, Tensor]) -> Any:
    """What `to_json` made the text of. Raises FlashPackError naming the file, `shown`, for other text."""
    try:
        return _decode(json.loads(text), tensors)
    except _AbsentError as error:
        lacked = f"the file's metadata tell of a tensor {quoted(error.args[0])} that it lacks"
        raise FlashPackError(f"{shown}: {lacked}: load_file loads those that it holds") from None
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:  # RecursionError, too
        reason = clipped(f"{type(error).__name__}: {error}")
        raise FlashPackError(
            f"{shown}: the file's metadata holds no values of flashpack's: {reason}"
        ) from None


def _encode(value: Any, where: str, name: str, tensors: dict[str, Tensor] | None) -> Any:
    kind: type[Any] = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {_MARK: "float", _OF: str(value)}
    if kind is list:
        return _items(value, where, name, tensors)
    if kind in (tuple, torch.Size):
        return {_MARK: kind.__name__, _OF: _items(value, where, name, tensors)}
    if kind in (dict, OrderedDict, Counter):
        return _mapping(value, where, name, tensors)
    if kind in (torch.dtype, torch.device):
        return {_MARK: kind.__name__, _OF: str(value).removeprefix("torch.")}
    if tensors is not None and isinstance(value, Tensor):
        return {_MARK: "tensor", _OF: _named(name, value, tensors)}
    what = "a tensor or a plain value" if tensors is not None else "a plain value"
    raise ValueError(f"{where}: is of {kind.__module__}.{kind.__qualname__}, not {what}")


def _items(values: Iterable[Any], where: str, name: str, tensors: dict[str, Tensor] | None) -> list[Any]:
    return [
        _encode(value, f"{where}[{number}]", f"{name}.{number}", tensors)
        for number, value in enumerate(values)
    ]


def _mapping(
    value: Mapping[Any, Any], where: str, name: str, tensors: dict[str, Tensor] | None
) -> dict[str, Any]:
    pairs = [
        (
            _encode(key, f"a key of {where}", "", None),
            _encode(
                each, f"{where}[{quoted(key) if isinstance(key, str) else key}]", f"{name}.{key}", tensors
            ),
        )
        for key, each in value.items()
    ]
    if type(value) is dict and _MARK not in value and all(type(key) is str for key in value):
        return dict(pairs)
    versions = getattr(value, "_metadata", None)  # a state dict's, by which modules read older ones
    extra = {} if versions is None else {"metadata": _encode(versions, f"{where}._metadata", "", None)}
    return {_MARK: type(value).__name__, _OF: [list(pair) for pair in pairs], **extra}


def _named(name: str, value: Tensor, tensors: dict[str, Tensor]) -> str:
    """A free name for the tensor: "a.b" may be a key, or lead to one: no record ends as extra state does."""
    name, number = name.removeprefix(".") or "tensor", 1
    name += "#" if name.endswith("_extra_state") else ""
    free = name
    while free in tensors:
        number += 1
        free = f"{name}#{number}"
    tensors[free] = value
    return free


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: _decode(each, tensors) for key, each in value.items()}
    kind, of = value[_MARK], value[_OF]
    if kind == "tensor":
        return _tensor(of, tensors)
    if kind == "float":
        return float(of)
    if kind == "dtype":
        return _dtype(of)
    if kind == "device":
        return torch.device(of)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](_decode(each, tensors) for each in of)
    made = _MAPPINGS[kind]((_decode(key, tensors), _decode(each, tensors)) for key, each in of)
    if "metadata" in value:
        made._metadata = _decode(value["metadata"], tensors)
    return made


def _tensor(name: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    if isinstance(name, str) and name not in tensors:
        raise _AbsentError(name)
    return tensors[name]


def _dtype(name: str) -> torch.dtype:
    dtype = vars(torch).get(name)  # torch's own __getattr__ would import modules
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return dtype
