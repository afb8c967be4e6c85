"""What comes over connections, and the answers, with the plan's faults."""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import azure
import s3
from objects import Found, Objects, RangeError, span
from wire import Answer, Connection, Request

from plan import Fault, Plan

_SLICE_BYTES = 1 << 20
_PATIENCE_SECONDS = 0.5
_SIGNED = re.compile(r"/\.signed/(\d+)(/.*)")
_S3_SIGNATURE = "AWS4-HMAC-SHA256 Credential="


class Server:
    """Answers on a port of its own until the process ends."""

    def __init__(self, root: Path, context: ssl.SSLContext | None) -> None:
        self.objects = Objects(root)
        self.plan = Plan()
        self._context = context
        self._log: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def take(self) -> list[dict[str, Any]]:
        """The requests that have come since this was last asked; one not yet answered has no `ended`."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while any(entry["ended"] is None for entry in list(self._log)) and time.monotonic() < end:
            time.sleep(0.001)  # a client has its bytes before they are counted
        with self._lock:
            log, self._log = self._log, []
        return log

    def note(self, entry: dict[str, Any]) -> None:
        with self._lock:
            self._log.append(entry)

    def _accept(self) -> None:
        for number in range(1 << 62):
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client, number), daemon=True).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        connection = Connection(client, self._context)
        with suppress(OSError, ValueError):  # the client has gone, or speaks something else
            if not connection.secure():
                connection.socket.sendall(Answer(400).head(0))
                connection.end()
                return
            while request := connection.request():
                request.arrived = time.monotonic()
                if request.method == "CONNECT":  # as a proxy that is the server, too
                    connection.socket.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    self.note({**_entry(request, number), "ended": time.monotonic()})
                    connection.secure()
                    continue
                if not self._exchange(connection, request, number):
                    break
        connection.end()

    def _exchange(self, connection: Connection, request: Request, number: int) -> bool:
        """Answers; False if that ends the connection."""
        entry = _entry(request, number)
        self.note(entry)
        exchange = Exchange(self, connection, request, entry)
        try:
            return exchange.answer()
        finally:
            entry["ended"] = time.monotonic()


def _entry(request: Request, number: int) -> dict[str, Any]:
    return {
        "connection": number,
        "method": request.method,
        "target": request.target,
        "range": request.headers.get("range", ""),
        "authorization": request.headers.get("authorization", "").partition(" ")[0],
        "began": request.arrived,
        "status": 0,
        "sent": 0,
        "ended": None,
    }


class Exchange:
    """One request and its answer."""

    def __init__(
        self, server: Server, connection: Connection, request: Request, entry: dict[str, Any]
    ) -> None:
        self.objects, self.plan, self.port = server.objects, server.plan, server.port
        self.connection, self.request, self.entry = connection, request, entry
        self.flow = self.plan.pace.flow(request.arrived)
        self.signed = _SIGNED.fullmatch(request.key)
        self.key = self.signed[2] if self.signed else request.key
        self.faults: dict[str, Fault] = {}

    def answer(self) -> bool:
        self.faults = self.plan.act(self.request.method, self.key)
        if "reset" in self.faults:
            self.connection.reset()
            return False
        if "silence" in self.faults:
            self.connection.until_gone()
            return False
        refusal = self._refusal()
        if refusal is None and self.request.method in ("GET", "HEAD") and not self._is_listing():
            return self._object()
        for _ in self.connection.body(self.request.headers) if refusal else ():
            pass  # so that the next request is found
        answer = refusal or self._other()
        self.flow.wait(len(answer.body))
        return self._send(answer, answer.body)

    def _refusal(self) -> Answer | None:
        fault = self.faults.get("status")
        if fault:
            after = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return s3.error(fault.status, "InjectedFault", "a fault of the plan", **after)
        if "expire" in self.faults or (self.signed and not self._is_good(int(self.signed[1]))):
            return s3.error(403, "ExpiredToken", "The provided token has expired.")
        given = self.request.headers.get("authorization", "")
        if self.plan.signed and not given.startswith(_S3_SIGNATURE):
            return s3.error(403, "AccessDenied", "Access Denied")
        if self.plan.token and not self.signed and given != f"Bearer {self.plan.token}":
            return s3.error(401, "Unauthorized", "Invalid credentials in Authorization header")
        return None

    def _is_good(self, signature: int) -> bool:
        return self.plan.is_good(signature, self.faults.get("redirect"))

    def _is_listing(self) -> bool:
        return "list-type" in self.request.query or "comp" in self.request.query

    def _other(self) -> Answer:
        """The answer to what asks for no object."""
        api = azure if azure.is_for(self.request) else s3
        return api.answer(self.objects, self.request, self.connection.body(self.request.headers))

    def _object(self) -> bool:
        found = self.objects.find(self.key, changed="change" in self.faults)
        fault = self.faults.get("redirect")
        if found and fault and not self.signed:
            place = f"http://localhost:{self.port}/.signed/{self.plan.sign(fault)}{self.key}?Signature=secret-of-the-redirect"
            self.flow.wait()
            return self._send(Answer(302, headers={"Location": place}), b"")
        answer, first, count = self._head(found)
        self.flow.wait()
        if found is None or answer.status >= 300:
            return self._send(answer, answer.body)
        again = self._send(answer, b"", count)
        if self.request.method == "HEAD":
            return again
        with found.path.open("rb") as file:
            return self._body(file, first, count) and again

    def _head(self, found: Found | None) -> tuple[Answer, int, int]:
        """The answer without its body, and which bytes that is."""
        if found is None:
            return s3.error(404, "NoSuchKey", "The specified key does not exist."), 0, 0
        headers = {"Accept-Ranges": "bytes", "Last-Modified": found.changed, "ETag": found.tag}
        headers.update(self.plan.headers)
        if "untagged" in self.faults:
            del headers["ETag"]
        if "weak" in self.faults:
            headers["ETag"] = f"W/{found.tag}"
            del headers["Last-Modified"]
        if not found.meets(self.request.headers):
            return s3.error(412, "PreconditionFailed", "A precondition did not hold."), 0, 0
        wanted = self.request.headers.get("range") or self.request.headers.get("x-ms-range")
        try:
            part = None if "whole" in self.faults else span(wanted, found.size)
        except RangeError:
            return s3.error(416, "InvalidRange", "The requested range is not satisfiable"), 0, 0
        first, count = part or (0, found.size)
        if part:
            headers["Content-Range"] = f"bytes {first}-{first + count - 1}/{found.size}"
        if "short" in self.faults:
            count //= 2
        return Answer(206 if part and "ok" not in self.faults else 200, headers=headers), first, count

    def _send(self, answer: Answer, body: bytes, length: int | None = None) -> bool:
        """Whether another request may follow."""
        self.entry["status"] = answer.status
        body = b"" if self.request.method == "HEAD" else body
        self.connection.socket.sendall(answer.head(len(answer.body) if length is None else length) + body)
        self.entry["sent"] += len(body)
        return self.request.headers.get("connection", "").lower() != "close"

    def _body(self, file: BinaryIO, first: int, count: int) -> bool:
        stop = self.faults.get("cut") or self.faults.get("stall")
        end = first + (min(stop.after, count) if stop else count)
        wrong = self._wrong_byte(first, count)
        for at in range(first, end, _SLICE_BYTES):
            size = min(_SLICE_BYTES, end - at)
            self.flow.wait(size)
            if self.connection.is_plain and wrong not in range(at, at + size):
                _sendfile(self.connection.socket, file, at, size)
            else:
                data = bytearray(os.pread(file.fileno(), size, at))
                if wrong in range(at, at + size):
                    data[wrong - at] ^= 0xFF
                self.connection.socket.sendall(data)
            self.entry["sent"] += size
        if "stall" in self.faults:
            self.connection.until_gone()
        return stop is None

    def _wrong_byte(self, first: int, count: int) -> int:
        """The offset of the byte that is sent wrong; -1 if none is."""
        fault = self.faults.get("flip")
        if fault is None:
            return -1
        return first + count // 2 if fault.at is None else fault.at


def _sendfile(to: socket.socket, file: BinaryIO, offset: int, count: int) -> None:
    while count:
        sent = os.sendfile(to.fileno(), file.fileno(), offset, count)
        if not sent:
            raise ConnectionError("the file has become shorter")
        offset, count = offset + sent, count - sent
