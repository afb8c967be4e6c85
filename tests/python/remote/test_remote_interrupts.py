"""Ctrl-C while a server makes one wait: the call ends, and nothing is asked for again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import flashpack
import flashpack.numpy
import pytest
from faultstore import Request, Store
from flashpack.commands import convert_to_flashpack
from processes import TIMEOUT_SECONDS, environment
from remote_model import FOLDER, SAFETENSORS, URL, into_module, tensors

WAITS: dict[str, Mapping[str, object]] = {
    "no answer": {"kind": "silence"},
    "no more bytes": {"kind": "stall", "after": 1000},
    "the next try": {"kind": "status", "status": 503, "retry_after": 100},
}
CALLS: dict[str, tuple[int, Callable[[], object]]] = {  # and the request that is not answered
    "opening": (1, lambda: flashpack.load_file(URL)),
    "loading": (2, lambda: flashpack.load_file(URL)),
    "loading in place": (2, lambda: into_module(URL, in_place=True)),
    "loading arrays": (2, lambda: flashpack.numpy.load_file(URL)),
    "opening for slices": (1, lambda: flashpack.open(URL)),
    "verifying": (2, lambda: flashpack.verify_file(URL)),
    "opening a folder": (4, lambda: flashpack.load_file(FOLDER)),
    "explaining": (1, lambda: flashpack.explain(URL)),
    "converting": (2, lambda: convert_to_flashpack(SAFETENSORS, f"{FOLDER}/new.flashpack")),
}


@pytest.fixture(autouse=True)
def _as_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C raises, and loads make one request after the other."""
    monkeypatch.setenv("FLASHPACK_READ_THREADS", "1")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(store: Store, requests: int, call: Callable[[], object]) -> list[Request]:
    """The requests of a call that Ctrl-C ends once the server has so many."""
    came: list[Request] = []
    has_ended = threading.Event()

    def press() -> None:
        while len(came) < requests and not has_ended.is_set():
            came.extend(store.take())
        if not has_ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        has_ended.set()
        presser.join()
    return came + store.take()


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_ends_the_wait(model: Store, name: str, wait: str) -> None:
    number, call = CALLS[name]
    model.plan({**WAITS[wait], "first": number, "times": 0})
    assert len(interrupt(model, number, call)) == number


@pytest.mark.parametrize("wait", ["no answer", "the next try"])
def test_an_upload_is_given_up(s3: Store, wait: str) -> None:
    (s3.folder / "uploads").mkdir()
    s3.plan({**WAITS[wait], "method": "PUT", "times": 0})
    url = "s3://uploads/model.flashpack"
    requests = interrupt(s3, 3, lambda: flashpack.save_file(tensors(), url))
    parts = [request.target for request in requests if request.method == "PUT"]
    assert len(parts) == len(set(parts)) > 0
    assert requests[-1].method == "DELETE"
    assert [*(s3.folder / ".uploads").glob("*")] == []


def test_an_interrupt_between_requests_stops_a_load(model: Store) -> None:
    model.plan(connection_mb_per_s=4)  # a request takes two seconds
    assert len(interrupt(model, 2, lambda: flashpack.load_file(URL))) == 2


def test_a_command_ends_with_130(model: Store) -> None:
    model.plan({"kind": "silence", "times": 0})
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from flashpack.__main__ import main; main()"
    command = [sys.executable, "-c", code, "ls", URL]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while process.poll() is None and not model.take():
                pass
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, out, error) == (130, "", "Interrupted\n")
    assert model.take() == []
