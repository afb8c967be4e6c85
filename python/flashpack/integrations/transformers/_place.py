"""Where a saved model lies, and the configuration that lies there."""

from __future__ import annotations

import copy
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ..._paths import StrPath
from .._hub import HubOptions, fetch
from .._weights import find_weights, weights_name

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")


@dataclass(frozen=True)
class Place:
    """A local folder with a configuration and weights; `source` is what the caller named it."""

    source: str
    folder: Path
    weights: Path

    @classmethod
    def take(cls, source: StrPath, arguments: dict[str, Any]) -> Place:
        """Find the folder or fetch the repository, by those of `arguments` that say which; remove them there.

        Raises NotADirectoryError, FileNotFoundError, and what huggingface_hub raises.
        """
        subfolder = arguments.pop("subfolder", None) or ""
        variant = arguments.pop("variant", None)
        names = (CONFIG, GENERATION_CONFIG, weights_name(variant), "*.py")
        patterns = [f"{subfolder}/{name}" if subfolder else name for name in names]
        folder = fetch(source, HubOptions.take(arguments), patterns) / subfolder
        return cls(os.fspath(source), folder, find_weights(folder, variant))


def read_config(config_class: Any, place: Place, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The configuration, with those of `arguments` in it that are settings of it; and the other arguments.

    `config` among the arguments is one to use instead (a copy of it then gets the implementation of attention
    alone, as in transformers), or another place to read it from. Raises FileNotFoundError, and what
    `config_class` raises.
    """
    rest = dict(arguments)
    given = rest.pop("config", None)
    if isinstance(given, PretrainedConfig):
        config = copy.deepcopy(given)
        for name in _IMPLEMENTATIONS:
            if name in rest:
                setattr(config, f"_{name}", rest.pop(name))
    else:
        origin = place.folder if given is None else given
        if given is None and not (place.folder / CONFIG).is_file():  # some would come with default values
            raise FileNotFoundError(errno.ENOENT, f"No {CONFIG} in the folder", str(place.folder))
        config, rest = config_class.from_pretrained(os.fspath(origin), return_unused_kwargs=True, **rest)
    config.name_or_path = place.source
    return config, rest
