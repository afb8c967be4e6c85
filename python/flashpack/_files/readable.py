"""Files that are in memory, or behind an object with `read`: as paths for the native side, and as bytes."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeAlias

from .._core.errors import FlashPackError
from .sources import ModelPath, model_path


class Readable(Protocol):
    """An open binary file, or what reads like one."""

    def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes, fewer at the end; all that are left without `size`."""


Content: TypeAlias = bytes | bytearray | memoryview
Source: TypeAlias = ModelPath | Readable
_COPY_BYTES = 16 << 20


@contextmanager
def as_path(source: Source) -> Iterator[str]:
    """The path of a model: `source` itself, or of a copy of its content in memory while the context lasts.

    A mapping that is made meanwhile stays. An object with `read` is read from where it stands.
    """
    if not hasattr(source, "read"):
        yield model_path(source)
        return
    with os.fdopen(os.memfd_create("flashpack", os.MFD_CLOEXEC), "wb") as copy:
        path = f"/proc/self/fd/{copy.fileno()}"
        try:
            while piece := source.read(_COPY_BYTES):
                copy.write(piece)
            copy.flush()
            yield path
        except FlashPackError as error:
            name = getattr(source, "name", f"<{type(source).__name__}>")
            raise type(error)(str(error).replace(path, str(name))) from None


def readable(data: Content | Readable) -> Readable:
    """`data` as an object with `read`."""
    return io.BytesIO(data) if isinstance(data, (bytes, bytearray, memoryview)) else data


def saved_bytes(save: Callable[[Path], None]) -> bytes:
    """The content of the file that `save` writes to the path that it is given."""
    with tempfile.TemporaryDirectory(prefix="flashpack-") as folder:
        path = Path(folder, "model.flashpack")
        save(path)
        return path.read_bytes()
