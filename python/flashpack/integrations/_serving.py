"""What serving engines load: a checkpoint's tensors in turn, in little memory beside the engine's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .._core.paths import StrPath, is_url, text_path
from .._files.folder import INDEX_SUFFIX, SUFFIX
from .._files.opened import OpenModel
from .._files.sources import find_url, find_weights
from .._hub.client import HubOptions, fetch
from .._load.cast import in_groups
from .._load.load import described, load_tensors
from .._ranks.group import world_size_of

# What is read at a time where tensors are not mapped: large beside the cost of a load (about a millisecond),
# small beside the memory that engines leave free.
WINDOW_BYTES = 512 << 20


@dataclass(frozen=True)
class ServingOptions:
    """What an engine's --model-loader-extra-config may say.

    `mapped`: hand out mappings of the files, of which only what an engine takes is read, instead of reading
    all of them to the device; None: on a CUDA device read, if this process is the only rank.
    `verify`: check checksums; None: of what is not mapped.
    """

    mapped: bool | None = None
    verify: bool | None = None

    @classmethod
    def take(cls, given: Any) -> ServingOptions:
        """The options in `given`, a mapping or nothing. Raises ValueError for others, and other values."""
        names = [field.name for field in fields(cls)]
        if not isinstance(given or {}, Mapping):
            raise ValueError(f"the loader's extra config must be a mapping, not {type(given).__name__}")
        arguments = dict(given or {})
        unknown = sorted(arguments.keys() - set(names))
        if unknown:
            raise ValueError(f"unknown in the loader's extra config: {unknown}; there are {names}")
        for name, value in arguments.items():
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"{name} in the loader's extra config must be true or false, not {value!r}")
        return cls(**arguments)

    def maps(self, device: torch.device) -> bool:
        """Whether tensors for `device` are mapped.

        Of several ranks each takes a part that only the engine knows: of a mapping no more than that is read.
        """
        if self.mapped is not None:
            return self.mapped
        return device.type != "cuda" or torch.version.cuda is None or world_size_of() > 1


def find_checkpoint(source: StrPath, hub: HubOptions) -> str:
    """The FlashPack file of a folder, a URL or a repository, or the index of its shards.

    Raises FileNotFoundError when there is none, ValueError when there are several, and what `fetch` raises.
    """
    if is_url(source):
        return find_url(os.fspath(source), None, [SUFFIX])
    folder = fetch(source, hub, [f"*{SUFFIX}", f"*{SUFFIX}{INDEX_SUFFIX}"])
    return str(find_weights(folder, None, [SUFFIX]))


def checkpoint_tensors(
    path: StrPath,
    device: torch.device,
    options: ServingOptions,
    wanted: Callable[[str], bool] = lambda _: True,
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all that is `wanted` of a file, or of the shards of an index.

    Tensors are mapped, or on `device`, as those of a URL always are. Those that are read come in windows of
    WINDOW_BYTES, or of one tensor that is larger: there are never more than two, if the receiver drops what
    it has been handed.

    Raises what `load_file` raises.
    """
    weights = OpenModel(text_path(path))
    sizes = {name: each.nbytes for name, each in described(weights.footer, {}).items() if wanted(name)}
    mapped = options.maps(device) and weights.can_be_mapped
    target, eager = (torch.device("cpu"), None) if mapped else (device, True)
    windows = [(list(sizes), 0)] if mapped else in_groups(sizes.items(), WINDOW_BYTES)
    for window, _ in windows:
        tensors = load_tensors(weights, target, names=window, eager=eager, verify=options.verify)
        yield from _given_away(tensors)


def _given_away(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The items, none of which is held here once it is handed out."""
    for name in list(tensors):
        yield name, tensors.pop(name)
