"""What the saves of both libraries take as keyword arguments, and the steps that they share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._core.names import close_match, listed, warn
from .._core.paths import StrPath, text_path
from .._files.folder import index_path
from .._files.sources import files_of
from .._hub.client import PushOptions

_PACKING = ("target_dtype", "align_bytes", "silent", "num_workers", "max_shard_size", "checksum", "compress")
_PUSHING = tuple(field.name for field in fields(PushOptions))
_OWN = ("variant", "state_dict", "is_main_process")
# Arguments of the libraries' save_pretrained that do not matter to a FlashPack file: those that change its
# content elsewhere, with their usual values, and others.
_WITHOUT_EFFECT = {"safe_serialization": True, "save_function": None}
_HARMLESS = ("use_flashpack", "save_peft_format")


@dataclass(frozen=True)
class SaveOptions:
    """`packing`: options of `pack_to_file`. `push`: where to push what was saved, if it is to be pushed.

    `state_dict` is saved instead of the model's own. Processes that are not the main one do nothing.
    """

    packing: Mapping[str, Any]
    push: PushOptions | None
    variant: str | None = None
    state_dict: Mapping[str, Tensor] | None = None
    is_main_process: bool = True

    @classmethod
    def take(cls, given: Mapping[str, Any]) -> SaveOptions:
        """The options in `given`. Warns of those of the libraries' own that have no effect.

        Raises TypeError for an argument that nobody knows: it may have been meant to change what is saved.
        """
        known = {*_PACKING, *_PUSHING, *_OWN, "push_to_hub", *_WITHOUT_EFFECT, *_HARMLESS}
        unknown = [name for name in given if name not in known]
        if unknown:
            match = close_match(unknown[0], known)
            hint = f"; did you mean {match!r}?" if match else ""
            raise TypeError(f"save_pretrained_flashpack() got unknown arguments {listed(unknown)}{hint}")
        ignored = [name for name, usual in _WITHOUT_EFFECT.items() if given.get(name, usual) is not usual]
        if ignored:
            warn(f"save_pretrained_flashpack() ignores {listed(ignored)}: FlashPack writes its own format")

        def chosen(names: Collection[str]) -> dict[str, Any]:
            return {name: given[name] for name in names if name in given}

        push = PushOptions(**chosen(_PUSHING)) if given.get("push_to_hub") else None
        return cls(chosen(_PACKING), push, **chosen(_OWN))


def folder_to_save(path: StrPath) -> Path:
    """`path`, which need not exist. Raises NotADirectoryError for a file."""
    folder = Path(text_path(path))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"expected a folder to save to, not a file: {folder}")
    return folder


def written_weights(path: Path) -> list[str]:
    """The names of the files that saving to `path` has made: itself, or shards and their index."""
    weights = path if path.is_file() else index_path(path)
    return list(dict.fromkeys(file.name for file in (*files_of(weights), weights)))


def refuse_adapters(model: nn.Module) -> None:
    """Raise ValueError for a model with PEFT adapters inside: its names are not those of its class."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{type(model).__name__} has PEFT adapters inside: save them on their own, and delete them from "
            "the model (delete_adapter, unload_lora_weights) to save it"
        )
