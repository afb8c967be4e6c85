"""Files that take the place of others in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .._core import native
from .._core.errors import local_path
from .._core.paths import text_path


@contextmanager
def replacing(destination: Path) -> Iterator[BinaryIO]:
    """Yield a new file to fill; it takes `destination`'s place only when the block succeeds.

    It has no name where the file system allows that, so that a killed writer leaves nothing. A symbolic
    link is followed. The mode is that of the file replaced, else the umask's. Raises OSError, also for a
    destination that is no regular file.
    """
    made = native.call("create", destination=text_path(destination))
    try:
        with open(made["descriptor"], "w+b", closefd=False) as file:
            yield file
        native.call("commit", **made)
    finally:
        os.close(made["descriptor"])
        if made["temporary"] is not None:
            Path(local_path(made["temporary"])).unlink(missing_ok=True)
