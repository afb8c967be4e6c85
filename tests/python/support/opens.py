"""How often a file is opened while something runs, as the kernel tells it."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from types import TracebackType

_ACCESS, _OPEN = 0x01, 0x20  # of <sys/inotify.h>
_EVENT = struct.Struct("iIII")


class Opens:
    """A context; afterwards `count` is how often `path` was opened in it, by whomever.

    The kernel tells equal events in a row as one: an open is counted if the file was read since the last.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._path = bytes(path)

    def __enter__(self) -> Opens:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, self._path, _ACCESS | _OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify", os.fsdecode(self._path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            events = os.read(self._descriptor, 1 << 20)
        except BlockingIOError:
            events = b""
        finally:
            os.close(self._descriptor)
        self.count = sum(mask == _OPEN for _, mask, _, _ in _EVENT.iter_unpack(events))
