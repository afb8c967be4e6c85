"""What becomes of the hostile fixtures, each loaded in a process of its own.

    python tests/python/reliability/hostile_files.py [--library NAME]

Refused: an exception that says the file is unsound (ValueError). Accepted: tensors came out of it. A load
that has not ended after 10 seconds dies by SIGALRM. Without --library, of flashpack and of flashpack-0.4.5
in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
from libraries import NAMES, Library, in_processes_of, this_library

HOSTILE = Path(__file__).parents[2] / "fixtures" / "hostile"
SECONDS = 10


def outcome_of(library: Library, path: Path) -> str:
    answer, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            for tensor in library.load(path).values():
                tensor.clone()
            told = "accepted"
        except ValueError:
            told = "refused"
        except BaseException as error:  # noqa: BLE001 (any other way to fail)
            told = f"failed: {type(error).__name__}"
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    told = os.read(answer, 1000).decode()
    os.close(answer)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return told if code == 0 else f"died: {signal.Signals(-code).name}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", choices=NAMES[:2])
    options = parser.parse_args()
    if options.library is None:
        for name in NAMES[:2]:
            print(in_processes_of(name, __file__), end="", flush=True)
        return
    library = this_library(options.library)
    told_of: dict[str, dict[str, str]] = json.loads((HOSTILE / "expected.json").read_text())["files"]
    files = [HOSTILE / name for name, entry in sorted(told_of.items()) if entry["must"] == "refuse"]
    seen = Counter(outcome_of(library, path) for path in files)
    told = ", ".join(f"{count} {what}" for what, count in sorted(seen.items(), reverse=True))
    print(f"{options.library:<16} {len(files)} files: {told}", flush=True)


if __name__ == "__main__":
    main()
