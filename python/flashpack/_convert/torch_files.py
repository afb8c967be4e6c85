"""State dicts out of torch's own files, and out of safetensors where the native side has no cast."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._core.names import listed, warn
from .._files.opened import OpenModel
from .._files.sources import are_safetensors, files_of, shards_of
from .._load.load import load_tensors

_ESCAPE_CODE = re.compile(r"\x1b\[[\d;]*m")
_MAX_REASON = 500


def read_state_dict(weights: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file or of shards, mapped rather than read wherever the format allows.

    `key` as in `choose_state_dict`. Raises ValueError for a file that is no state dict, that needs pickled
    code, or repeats a name.
    """
    if are_safetensors(weights):
        return load_tensors(OpenModel(str(weights)), torch.device("cpu"))
    parts = {file.name: _read_torch(file, key) for file in files_of(weights)}
    if weights.suffix == ".json":
        _check_promises(weights, parts)
    merged: dict[str, Tensor] = {}
    for shard, part in parts.items():
        repeated = merged.keys() & part.keys()
        if repeated:
            raise ValueError(f"{shard}: tensors that an earlier shard holds too: {sorted(repeated)}")
        merged.update(part)
    return merged


def read_metadata(weights: Path) -> dict[str, str]:
    """The strings that safetensors files hold beside their tensors; torch's files have none."""
    if not are_safetensors(weights):
        return {}
    return dict(OpenModel(str(weights)).footer.get("metadata", {}))


def _check_promises(index: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise ValueError when a shard (by its plain name) does not hold a tensor that the index promises."""
    promised = shards_of(index).items()
    broken = [(name, shard) for name, shard in promised if name not in parts[shard]]
    if broken:
        raise ValueError(
            f"{index}: {len(broken)} tensors of the index are missing from their shards, the first is "
            f"{broken[0][0]!r} in {broken[0][1]}"
        )


def _read_torch(path: Path, key: str | None) -> dict[str, Tensor]:
    mapped = zipfile.is_zipfile(path)  # torch's older format cannot be mapped
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (damage can make the unpickler fail in any way)
        reason = _refusal(error)  # without torch's advice to run whatever code the file holds
        raise ValueError(f"{path}: torch.load(weights_only=True) refuses the file: {reason}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict")
    state = choose_state_dict(content, key, str(path))
    for name in state:
        if not isinstance(name, str):
            raise ValueError(f"{path}: not a state dict: tensor names must be strings, not {name!r}")
    return dict(state)


def _refusal(error: Exception) -> str:
    text = _ESCAPE_CODE.sub("", str(error))
    if code := re.search(r"Unsupported (?:global|class).*?(?:GLOBAL|class) ([\w.]+)", text):
        return (
            f"it holds {code[1]}, which runs code of its own; if you trust the file, load it in Python and "
            "save its state dict alone"
        )
    reason = re.search(r"WeightsUnpickler error: (.+)", text)
    return (reason[1] if reason else text.partition("\n")[0])[:_MAX_REASON]


def choose_state_dict(content: Mapping[Any, Any], key: str | None, name: str) -> Mapping[Any, Any]:
    """The state dict under `key`, dotted where dicts are nested, of what `name` holds.

    Without `key`: all of it, or what lies under "state_dict", with a warning that names what is left out.
    Raises ValueError for a key that is not there, and for a checkpoint whose state dicts have other keys.
    """
    if key is not None:
        found = _under(content, key)
        if not isinstance(found, Mapping):
            raise ValueError(f"{name}: has no state dict under the key {key!r}{_choice(content)}")
        return found
    state = content.get("state_dict")
    if isinstance(state, Mapping):
        left = [str(each) for each in content if each != "state_dict"]
        if left:
            warn(f"{name}: takes the {len(state)} entries of 'state_dict' and leaves out {listed(left)}")
        return state
    if content and not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{name}: is not a state dict: there is no tensor at its top{_choice(content)}")
    return content


def _under(content: Any, key: str) -> Any:
    """What lies under `key`: one key, or dotted ones. None if nothing does."""
    if not isinstance(content, Mapping):
        return None
    if key in content:
        return content[key]
    found = (
        _under(content[each], key.removeprefix(f"{each}."))
        for each in content
        if isinstance(each, str) and key.startswith(f"{each}.")
    )
    return next((each for each in found if each is not None), None)


def _choice(content: Mapping[Any, Any]) -> str:
    found = list(_state_dicts(content, "", 3))
    if found:
        return f"; choose one of its state dicts with --key (key=): {listed(found)}"
    plain = any(isinstance(each, Tensor) for each in content.values())
    return "; it is a state dict itself: leave the key out" if plain else ""


def _state_dicts(content: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[str]:
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and depth:
            if any(isinstance(each, Tensor) for each in value.values()):
                yield f"{prefix}{key}"
            else:
                yield from _state_dicts(value, f"{prefix}{key}.", depth - 1)
