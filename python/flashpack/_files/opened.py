"""Open models: files are opened and parsed once, whatever is loaded from them after that."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from .._core import ops
from .._core.native import decoded, waiting_for_servers
from .._core.paths import StrPath, has_url, text_path
from .readable import Source, as_path
from .sources import shown_path


class OpenModel:
    """The weights behind a path. They stay what they are when other files take their paths.

    `path`: as `model_path` gives it. `cache_dir`: the folder that keeps a copy of what is read by URL; None
    for what FLASHPACK_CACHE names, if anything. `handle`: what operators know the model by; with the last
    reference to it the files are closed. Raises FlashPackError for files that are not sound, OSError for
    those that cannot be read.
    """

    def __init__(self, path: str, cache_dir: StrPath | None = None) -> None:
        self.path = path
        folder = None if cache_dir is None else text_path(cache_dir)
        start = functools.partial(ops.open_model, path, folder)
        self.handle: Tensor = waiting_for_servers(start) if self.is_remote else start(None)

    def __deepcopy__(self, _: dict[int, Any]) -> OpenModel:
        return self

    def __reduce__(self) -> str:
        raise TypeError(f"cannot pickle the open model {self.shown!r}: open it in the process that needs it")

    @property
    def shown(self) -> str:
        """What messages call the model."""
        return shown_path(self.path)

    @functools.cached_property
    def is_remote(self) -> bool:
        """Whether a URL names any of its files: each read is a request."""
        return has_url(self.path)

    @functools.cached_property
    def can_be_mapped(self) -> bool:
        """Whether memory can show its tensors: those of objects, and of compressed files, have to be read."""
        return not self.is_remote and not int(self.handle[3])

    @functools.cached_property
    def bytes(self) -> int:
        """Bytes of its files."""
        return int(self.handle[1])

    @property
    def files(self) -> int:
        """The number of its files."""
        return int(self.handle[2])

    @functools.cached_property
    def footer(self) -> dict[str, Any]:
        """The footer; of safetensors and of several files, the one that a single file of all would have."""
        footer: dict[str, Any] = decoded(ops.describe(self.handle), self.shown)
        return footer


@contextmanager
def opened(source: Source, cache_dir: StrPath | None = None) -> Iterator[OpenModel]:
    """The model of a path, or of an object with `read`, by whose name errors call it."""
    with as_path(source) as path:
        yield OpenModel(path, cache_dir)
