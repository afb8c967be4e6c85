"""Programs on terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

from processes import TIMEOUT_SECONDS, environment


def on_terminal(
    *args: object, columns: int = 80, lines: int = 24, cwd: Path | None = None, **variables: str
) -> tuple[int, str]:
    """Exit code and what came through a pseudo-terminal that is all of the program's streams."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    command = [sys.executable, *map(str, args)]
    env = environment(**{"TERM": "xterm", **variables})
    env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}  # it has its own
    with subprocess.Popen(command, env=env, cwd=cwd, stdin=child, stdout=child, stderr=child) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                block = os.read(parent, 65536)
            except OSError:  # the last of the other side's descriptors was closed
                break
            if not block:
                break
            shown += block
        os.close(parent)
        return process.wait(TIMEOUT_SECONDS), shown.decode()
