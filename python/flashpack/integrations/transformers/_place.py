"""Where a saved model lies, and the configuration that lies there."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ..._core.paths import StrPath
from ..._files.folder import CONFIG, require_config
from ..._hub.client import HubOptions
from .._weights import fetch_weights

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

        Raises what `fetch_weights` raises.
        """
        subfolder, variant = arguments.pop("subfolder", None), arguments.pop("variant", None)
        beside = (CONFIG, GENERATION_CONFIG, "*.py")
        weights = fetch_weights(source, HubOptions.take(arguments), subfolder, variant, beside)
        return cls(os.fspath(source), weights.parent, weights)


def read_config(config_class: Any, place: Place, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The configuration, with those of `arguments` in it that are settings of it; and the other arguments.

    `config` among the arguments is one to use instead (a copy of it then gets the implementation of attention
    alone, as in transformers), or another place to read it from. Raises what `require_config` and
    `config_class` raise.
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
        if given is None:  # some classes would make one of default values
            require_config(place.folder)
        config, rest = config_class.from_pretrained(os.fspath(origin), return_unused_kwargs=True, **rest)
    config.name_or_path = place.source
    return config, rest
