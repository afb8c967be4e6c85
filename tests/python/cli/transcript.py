"""Runs a list of commands in one process and prints each before what it prints, as on a terminal.

Arguments: a JSON list of command lines, run in the current folder.
"""

from __future__ import annotations

import json
import os
import shlex
import sys

from flashpack.__main__ import main


def run(line: str) -> None:
    print(f"$ flashpack {line}", flush=True)
    code = 0
    try:
        main(shlex.split(line), prog_name="flashpack")
    except SystemExit as ended:
        code = int(ended.code or 0)
    if code:
        print(f"[exit code {code}]", flush=True)
    print(flush=True)


os.dup2(1, 2)  # both in the order of time
for line in json.loads(sys.argv[1]):
    run(line)
