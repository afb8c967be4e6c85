"""Calls functions in processes of their own that have imported already what takes seconds.

Hundreds of tests want a fresh process. One interpreter imports, and forks for each call. It calls neither
CUDA nor flashpack, and ends with the process that started it.

    done = warm.call(__file__, "load_twice", str(path), env={**os.environ, "FLASHPACK_READ_THREADS": "1"})
    assert done.returncode == 0, done.stderr
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

START_SECONDS = 120
# Of variables that the loader, or torch, reads but once.
READ_AT_START = ("LD_", "PYTORCH_")


# --- In the process that asks. -------------------------------------------------------------------


def call(
    file: str,
    function: str,
    *args: object,
    env: Mapping[str, str],
    imports: tuple[str, ...] = ("torch", "flashpack"),
    timeout: float,
) -> CompletedProcess[str]:
    """Calls a function of the module at `file` with literals, whatever comes of it.

    `env` is the environment of the call. Calls with the same `imports`, libraries and settings of torch come
    from the same interpreter, which has imported in the environment of the first.

    Raises subprocess.TimeoutExpired, and ends the process.
    """
    at_start = {name: value for name, value in env.items() if name.startswith(READ_AT_START)}
    server = _server(tuple(sorted(at_start.items())), imports)
    with tempfile.TemporaryDirectory() as folder, server.connect() as link:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        order = {
            "call": [file, function, repr(args)],
            "env": dict(env),
            "path": [entry for entry in sys.path if entry],
            "folder": str(Path.cwd()),
            "outputs": list(map(str, outputs)),
        }
        answers = link.makefile("rw")
        answers.write(json.dumps(order) + "\n")
        answers.flush()
        process = int(answers.readline())
        link.settimeout(timeout)
        try:
            code = int(answers.readline())
        except TimeoutError:
            os.killpg(process, signal.SIGKILL)
            raise subprocess.TimeoutExpired(function, timeout) from None
        stdout, stderr = (path.read_text(errors="replace") for path in outputs)
    return CompletedProcess([file, function], code, stdout, stderr)


class _Server:
    """An interpreter that waits for calls, until its standard input ends."""

    def __init__(self, env: Mapping[str, str], imports: tuple[str, ...]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._address = str(Path(self._folder.name, "calls"))
        path = os.pathsep.join([str(Path(__file__).parent), *(entry for entry in sys.path if entry)])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FAKECUDA_", *READ_AT_START))}
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._address, *imports],
            env={**kept, "PYTHONPATH": path, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], START_SECONDS)[0]:
            raise TimeoutError(f"the server of warm processes did not start in {START_SECONDS} s")

    def connect(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        link.connect(self._address)
        return link


@functools.cache
def _server(env: tuple[tuple[str, str], ...], imports: tuple[str, ...]) -> _Server:
    return _Server(dict(env), imports)


# --- In the server, and in its children. ---------------------------------------------------------


def _serve(address: str) -> dict[str, Any]:
    """Returns in children alone, with what each is asked for."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that watchers leave nothing behind
    print("ready", flush=True)
    while True:
        if sys.stdin in select.select([sys.stdin, listener], [], [])[0]:
            os._exit(0)  # whoever asked has ended
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _watch(link)
        link.close()


def _watch(link: socket.socket) -> dict[str, Any]:
    """Returns in the child, and tells the other side of `link` its number and how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    answers = link.makefile("rw")
    order: dict[str, Any] = json.loads(answers.readline())
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        link.close()
        answers.detach()
        return order
    answers.write(f"{child}\n")
    answers.flush()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answers.write(f"{status}\n")
    answers.flush()
    os._exit(0)


def _become(order: dict[str, Any]) -> None:
    """What a process gets when it starts."""
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[:] = order["path"]
    os.chdir(order["folder"])
    for number, path in enumerate([os.devnull, *order["outputs"]]):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)


def call_from_file(file: str, name: str, args: str) -> None:
    """Calls a function of the module at `file`, which is imported under its own name."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    getattr(module, name)(*ast.literal_eval(args))


if __name__ == "__main__":
    for _name in sys.argv[2:]:
        importlib.import_module(_name)
    gc.freeze()  # or children would copy all of it when they look for garbage
    _order = _serve(sys.argv[1])
    _become(_order)
    call_from_file(*_order["call"])
