"""HTTP/1.1 on a socket: no more of it than stores and their clients use."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

_MOST_HEAD_BYTES = 64 << 10
_PIECE_BYTES = 1 << 20
_TLS_HANDSHAKE = 0x16  # the first byte of a connection that begins with one


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    arrived: float = 0.0
    key: str = ""
    query: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method != "CONNECT":
            url = urlsplit(self.target)  # a client of a proxy sends the host, too
            self.key = unquote(url.path)
            self.query = dict(parse_qsl(url.query, keep_blank_values=True))


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def head(self, length: int) -> bytes:
        """The lines before the body, of `length` bytes."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        headers = {"Content-Length": str(length), **self.headers}
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Connection:
    """A client's connection; with TLS if the client begins so and there is a `context`."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext | None) -> None:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain
        self._context = context
        self._ahead = b""

    @property
    def is_plain(self) -> bool:
        return not isinstance(self.socket, ssl.SSLSocket)

    def secure(self) -> bool:
        """Does the handshake, if one comes; False if it comes and there is no TLS."""
        begin = self.socket.recv(1, socket.MSG_PEEK)
        if begin and begin[0] == _TLS_HANDSHAKE:
            if self._context is None:
                return False
            self.socket = self._context.wrap_socket(self.socket, server_side=True)
        return True

    def request(self) -> Request | None:
        """The next one; None when the client has gone."""
        while b"\r\n\r\n" not in self._ahead:
            more = self.socket.recv(_MOST_HEAD_BYTES)
            if not more or len(self._ahead) > _MOST_HEAD_BYTES:
                return None
            self._ahead += more
        head, _, self._ahead = self._ahead.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        return Request(method, target, {name.lower(): value.strip() for name, _, value in pairs})

    def body(self, headers: Mapping[str, str]) -> Iterator[bytes]:
        """The body of the request of these headers, which must be taken before the next request."""
        if headers.get("expect", "").lower() == "100-continue":
            self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() != "chunked":
            yield from self._take(int(headers.get("content-length", 0)))
            return
        while size := int(self._line().partition(b";")[0], 16):
            yield from self._take(size)
            self._line()
        while self._line():
            pass

    def _take(self, count: int) -> Iterator[bytes]:
        while count:
            piece = self._ahead[:count] or self.socket.recv(min(count, _PIECE_BYTES))
            if not piece:
                raise ConnectionError("the client has gone")
            self._ahead = self._ahead[len(piece) :]
            count -= len(piece)
            yield piece

    def _line(self) -> bytes:
        while b"\r\n" not in self._ahead:
            more = self.socket.recv(4096)
            if not more:
                raise ConnectionError("the client has gone")
            self._ahead += more
        line, _, self._ahead = self._ahead.partition(b"\r\n")
        return line

    def reset(self) -> None:
        """Ends the connection such that the client's system tells it of a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def end(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def until_gone(self) -> None:
        """Returns when the client ends the connection."""
        while self.socket.recv(4096):
            pass
