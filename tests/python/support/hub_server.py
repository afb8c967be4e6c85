"""A stand-in for a model hub: enough of its HTTP API, on loopback, for the real huggingface_hub client.

`serving()` starts one in this process. `connect` points this process's client at it, `Hub.environment` a
fresh interpreter's. `hub_store` says what it holds.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_api import Reply, answer
from hub_store import Hub


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 around `answer`, with byte ranges, and with connections that break when the hub says so."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        """Every method goes one way."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        authorization = self.headers.get("Authorization")
        self._send(answer(self.hub, self.command, self.path, authorization, body))

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 (http.server's names)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, reply: Reply) -> None:
        body = reply.body
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            self.hub.ranges.append(wanted[0])
        if wanted and reply.status == HTTPStatus.OK:
            first = int(wanted[1]) if wanted[1] else max(0, len(body) - int(wanted[2]))
            last = min(int(wanted[2] or len(body)) if wanted[1] else len(body), len(body) - 1)
            reply.headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            reply.status, body = HTTPStatus.PARTIAL_CONTENT, body[first : last + 1]
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(body)

    def _write(self, body: bytes) -> None:
        cut = self.hub.cut_after if self.path.startswith("/large/") and self.command == "GET" else None
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.hub.cut_after, self.close_connection = None, True

    def log_message(self, *_: object) -> None:
        """Tests read `Hub.requests` instead."""


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url, hub.store_url = (
            f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost")
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def connect(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Point this process's huggingface_hub at `hub`: it reads these constants anew for each request."""
    from huggingface_hub import constants

    changes: dict[str, object] = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "no-token"),
    }
    for name, value in changes.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
