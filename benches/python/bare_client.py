"""What a store allows: ranges of an object into memory, by bare sockets and threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

import limits
from limits import Run


def ranges(url: str, threads: int, chunk: int | None) -> Run:
    """Each thread has a connection of its own; without `chunk` it makes one request for its share."""
    address = urlsplit(url)
    size = _size(address)
    chunk = chunk or -(-size // threads)

    def run() -> memoryview:
        memory = limits.huge_memory(size)
        mine = threading.local()

        def fetch(offset: int) -> None:
            if not hasattr(mine, "connection"):
                mine.connection = _connect(address)
            _fetch(mine.connection, address.path, memory[offset : min(offset + chunk, size)], offset)

        limits.in_threads(fetch, size, threads, chunk)
        return memory[:size]

    return run


def _connect(address: SplitResult) -> socket.socket:
    return socket.create_connection((address.hostname, address.port))


def _size(address: SplitResult) -> int:
    with _connect(address) as connection:
        connection.sendall(f"HEAD {address.path} HTTP/1.1\r\nHost: bare\r\n\r\n".encode())
        return _length(_head(connection))


def _fetch(connection: socket.socket, path: str, into: memoryview, offset: int) -> None:
    wanted = f"bytes={offset}-{offset + len(into) - 1}"
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bare\r\nRange: {wanted}\r\n\r\n".encode())
    head, _, ahead = _head(connection).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 206") or _length(head) != len(into):
        raise OSError(f"{head!r} is no answer to {wanted}")
    into[: len(ahead)] = ahead
    into = into[len(ahead) :]
    while into:
        count = connection.recv_into(into, 0, socket.MSG_WAITALL)
        if not count:
            raise OSError("the connection has ended")
        into = into[count:]


def _head(connection: socket.socket) -> bytes:
    """The head of an answer, and perhaps some of its body."""
    head = b""
    while b"\r\n\r\n" not in head:
        more = connection.recv(4096)
        if not more:
            raise OSError("the connection has ended")
        head += more
    return head


def _length(head: bytes) -> int:
    return int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])


def starting(threads: int, chunk: int | None) -> Callable[[str], Run]:
    return lambda url: ranges(url, threads, chunk)
