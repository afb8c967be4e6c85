"""The file system of benches/slowfs, built on first use, and its mounts."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CRATE = ROOT / "benches/slowfs"
_TARGET = ROOT / "target/slowfs"
_PROGRAM = _TARGET / "release/slowfs"


@dataclass(frozen=True)
class Counts:
    """Reads that the file system got; one of more than 1 MiB counts as several."""

    requests: int
    bytes: int
    most_in_flight: int


@dataclass(frozen=True)
class Mount:
    folder: Path

    def counts(self) -> Counts:
        """What was read since this was last asked, from the page cache not counted."""
        return Counts(**json.loads((self.folder / ".slowfs").read_text()))


def missing() -> str:
    """Why nothing can be mounted here; empty if it can."""
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if not _PROGRAM.exists() and shutil.which("cargo") is None:
        return "slowfs is not built, and there is no cargo to build it"
    return ""


def program() -> Path:
    if shutil.which("cargo") is not None:
        build = ["cargo", "build", "--quiet", "--release", "--locked", "--target-dir", str(_TARGET)]
        subprocess.run([*build, "--manifest-path", str(CRATE / "Cargo.toml")], check=True)
    return _PROGRAM


@contextmanager
def mounted(source: Path, folder: Path, **options: float) -> Iterator[Mount]:
    """`source`, seen slowly at `folder`; the options are those of the program: latency_ms=2."""
    folder.mkdir(exist_ok=True)
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    process = subprocess.Popen([program(), source, folder, *words], stderr=subprocess.PIPE, text=True)
    try:
        while not (folder / ".slowfs").exists():
            if process.poll() is not None:
                raise RuntimeError(process.communicate()[1])
            time.sleep(0.01)
        yield Mount(folder)
    finally:
        process.terminate()
        process.communicate()


if __name__ == "__main__":
    print(missing() or program())
