"""The store that the tests of URLs run against: what it answers, what it counts, and each of its faults."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, IncompleteRead, RemoteDisconnected
from pathlib import Path

import faultstore
import pytest
from faultstore import Store, most_in_flight, sent
from processes import environment

DATA = bytes(range(251)) * 5000
PATIENCE_SECONDS = 20.0


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """One connection."""

    def __init__(self, store: Store) -> None:
        self._connection = HTTPConnection("127.0.0.1", store.port, timeout=PATIENCE_SECONDS)

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, target, body=body, headers=named)
        answer = self._connection.getresponse()
        return Answer(answer.status, dict(answer.headers), answer.read())

    def get(self, **headers: str) -> Answer:
        return self.ask("GET", "/bucket/folder/object", **headers)


@pytest.fixture
def filled(store: Store) -> Store:
    path = store.folder / "bucket/folder/object"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    return store


@pytest.fixture
def client(filled: Store) -> Client:
    return Client(filled)


def test_objects_and_ranges_of_them(client: Client, filled: Store) -> None:
    whole = client.get()
    assert (whole.status, whole.body) == (200, DATA)
    assert whole.headers["ETag"]
    assert "Last-Modified" in whole.headers
    for header, part in (
        ("bytes=100-299", DATA[100:300]),
        ("bytes=1000-", DATA[1000:]),
        ("bytes=-9", DATA[-9:]),
        (f"bytes=10-{len(DATA)}", DATA[10:]),
    ):
        answer = client.get(Range=header)
        assert (answer.status, answer.body) == (206, part)
        assert answer.headers["Content-Range"].endswith(f"/{len(DATA)}")
    assert client.get(Range=f"bytes={len(DATA)}-").status == 416
    assert client.get(If_Match=whole.headers["ETag"]).status == 200
    assert client.get(If_Match='"another"').status == 412
    before = {"If_Unmodified_Since": "Mon, 01 Jan 2001 00:00:00 GMT"}
    assert client.get(If_Unmodified_Since=whole.headers["Last-Modified"]).status == 200
    assert client.get(**before).status == 412
    assert client.ask("GET", "/bucket/none").status == 404
    head = client.ask("HEAD", "/bucket/folder/object")
    assert (head.headers["Content-Length"], head.body) == (str(len(DATA)), b"")
    requests = filled.take()
    assert len(requests) == 12
    assert len({request.connection for request in requests}) == 1
    assert requests[1].range == "bytes=100-299"
    assert sent(requests[:3]) == len(DATA) + 200 + len(DATA) - 1000
    assert filled.take() == []


def test_listings_have_pages_and_folders(client: Client, filled: Store) -> None:
    for name in ("a", "b", "folder/second"):
        (filled.folder / "bucket" / name).write_bytes(name.encode())
    text = client.ask("GET", "/bucket?list-type=2&delimiter=/").body.decode()
    assert re.findall("<Key>(.*?)</Key>", text) == ["a", "b"]
    assert re.findall("<Prefix>([^<]+)</Prefix>", text) == ["folder/"]
    keys, token = [], ""
    for _ in range(4):
        page = client.ask("GET", f"/bucket?list-type=2&max-keys=1&continuation-token={token}").body.decode()
        keys += re.findall("<Key>(.*?)</Key>", page)
        token = "".join(re.findall("<NextContinuationToken>(.*?)<", page))
    assert keys == ["a", "b", "folder/object", "folder/second"]
    assert token == ""
    only = client.ask("GET", "/bucket?list-type=2&prefix=folder/s").body.decode()
    assert re.findall("<Key>(.*?)</Key>", only) == ["folder/second"]
    assert client.ask("GET", "/none?list-type=2").status == 404


def test_uploads_in_parts_appear_whole_or_not_at_all(client: Client) -> None:
    target = "/bucket/folder/object"
    begun = client.ask("POST", f"{target}?uploads").body.decode()
    upload = re.findall("<UploadId>(.*?)<", begun)[0]
    for number, part in ((2, b"second"), (1, b"first ")):
        made = client.ask("PUT", f"{target}?partNumber={number}&uploadId={upload}", part)
        assert made.headers["ETag"]
    assert client.get().body == DATA
    parts = b"".join(b"<Part><PartNumber>%d</PartNumber></Part>" % number for number in (1, 2))
    assert client.ask("POST", f"{target}?uploadId={upload}", parts).status == 200
    assert client.get().body == b"first second"
    assert client.ask("PUT", target, b"at once").status == 200
    assert client.get().body == b"at once"
    lost = client.ask("POST", f"{target}?uploadId={upload}", parts)
    assert (lost.status, client.get().body) == (400, b"at once")


def test_an_upload_that_is_given_up_leaves_nothing(client: Client, filled: Store) -> None:
    begun = client.ask("POST", "/bucket/new?uploads").body.decode()
    upload = re.findall("<UploadId>(.*?)<", begun)[0]
    client.ask("PUT", f"/bucket/new?partNumber=1&uploadId={upload}", b"part")
    assert client.ask("DELETE", f"/bucket/new?uploadId={upload}").status == 204
    assert client.ask("GET", "/bucket/new").status == 404
    assert [*(filled.folder / ".uploads").iterdir()] == []


def test_azures_blocks(client: Client) -> None:
    target = "/account/container/blob"
    for block in ("Yg==", "YQ=="):
        assert client.ask("PUT", f"{target}?comp=block&blockid={block}", block.encode()).status == 201
    names = b"<BlockList><Latest>YQ==</Latest><Latest>Yg==</Latest></BlockList>"
    assert client.ask("PUT", f"{target}?comp=blocklist", names).status == 201
    assert client.ask("GET", target, x_ms_range="bytes=0-5").body == b"YQ==Yg"
    listed = client.ask("GET", "/account/container?restype=container&comp=list").body
    assert b"<Name>blob</Name>" in listed


def refused(client: Client) -> type[Exception]:
    with pytest.raises((HTTPException, OSError)) as told:
        client.get(Range="bytes=100-1099")
    return told.type


def test_faults_that_break_connections(filled: Store) -> None:
    filled.plan({"kind": "reset"}, {"kind": "cut", "first": 2, "after": 10})
    assert refused(Client(filled)) is ConnectionResetError
    assert refused(Client(filled)) is IncompleteRead
    assert Client(filled).get().body == DATA
    filled.plan({"kind": "cut"}, {"kind": "stall", "first": 2, "after": 10}, {"kind": "silence", "first": 3})
    assert refused(Client(filled)) in (IncompleteRead, RemoteDisconnected)
    for _ in range(2):
        client = Client(filled)
        client._connection.timeout = 0.2
        assert refused(client) is TimeoutError
    assert [request.status for request in filled.take()] == [206, 206, 0]


def test_faults_of_answers(client: Client, filled: Store) -> None:
    filled.plan(
        {"kind": "status", "status": 429, "retry_after": 7},
        {"kind": "short", "first": 2},
        {"kind": "flip", "first": 3},
        {"kind": "flip", "first": 4, "at": 101},
        {"kind": "whole", "first": 5},
        {"kind": "untagged", "first": 6},
        {"kind": "expire", "first": 7, "times": 0},
    )
    answers = [client.get(Range="bytes=100-1099") for _ in range(9)]
    part = DATA[100:1100]
    assert (answers[0].status, answers[0].headers["Retry-After"]) == (429, "7")
    assert (answers[1].body, answers[1].headers["Content-Length"]) == (part[:500], "500")
    assert [at for at in range(1000) if answers[2].body[at] != part[at]] == [500]
    assert [at for at in range(1000) if answers[3].body[at] != part[at]] == [1]
    assert (answers[4].status, answers[4].body) == (200, DATA)
    assert "ETag" not in answers[5].headers
    assert [answer.status for answer in answers[6:]] == [403, 403, 403]


def test_faults_are_of_methods_and_keys(client: Client, filled: Store) -> None:
    filled.plan({"kind": "status", "method": "HEAD", "key": "folder/", "times": 0})
    assert client.ask("HEAD", "/bucket/folder/object").status == 503
    assert client.ask("HEAD", "/bucket/none").status == 404
    assert client.get().status == 200


def test_an_object_that_changes(client: Client, filled: Store) -> None:
    (filled.folder / "bucket/folder/object.changed").write_bytes(DATA[::-1])
    filled.plan({"kind": "change", "first": 2, "times": 0})
    first = client.get()
    assert first.body == DATA
    assert client.get(If_Match=first.headers["ETag"]).status == 412
    assert client.get().body == DATA[::-1]


def test_redirects_expire(client: Client, filled: Store) -> None:
    filled.plan({"kind": "redirect", "times": 0, "expires": 4})
    first = client.get()
    assert first.status == 302
    place = first.headers["Location"]
    assert [client.ask("GET", place).status for _ in range(4)] == [200, 200, 403, 403]
    second = client.get().headers["Location"]
    assert second != place
    assert client.ask("GET", second).body == DATA
    assert client.ask("GET", place).status == 403


def test_who_is_let_in(client: Client, filled: Store) -> None:
    filled.plan(signed=True)
    assert client.get().status == 403
    assert client.get(Authorization="AWS4-HMAC-SHA256 Credential=a, Signature=b").status == 200
    assert filled.take()[1].authorization == "AWS4-HMAC-SHA256"
    filled.plan(token="abc")
    assert [client.get().status, client.get(Authorization="Bearer abc").status] == [401, 200]


def test_answers_wait_together(filled: Store) -> None:
    """No time is asserted: with this latency all requests are there before the first answer."""
    filled.plan(latency_ms=500)
    sockets = [socket.create_connection(("127.0.0.1", filled.port)) for _ in range(40)]
    for each in sockets:
        each.sendall(b"GET /bucket/folder/object HTTP/1.1\r\nConnection: close\r\n\r\n")
    for each in sockets:
        data = b""
        while more := each.recv(1 << 20):
            data += more
        assert data.endswith(DATA)
        each.close()
    assert most_in_flight(filled.take()) == 40


def test_a_proxy_that_is_the_server(filled: Store) -> None:
    client = Client(filled)
    assert client.ask("GET", "http://elsewhere.test/bucket/folder/object").body == DATA
    client = Client(filled)
    client._connection.set_tunnel("elsewhere.test", 80)
    assert client.get().body == DATA
    assert [each.target for each in filled.take()] == [
        *("http://elsewhere.test/bucket/folder/object", "elsewhere.test:80", "/bucket/folder/object")
    ]


def test_a_plan_that_is_none_is_refused(tmp_path: Path) -> None:
    with faultstore.serving(tmp_path) as store, pytest.raises(ValueError, match="Expecting value"):
        store.plan({"kind": "none"})


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys, faultstore
        from pathlib import Path
        with faultstore.serving(Path(sys.argv[1])) as store:
            print(store.port)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-u", "-c", code, tmp_path]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not is_open(int(done.stdout), time.monotonic() + PATIENCE_SECONDS)


def is_open(port: int, until: float) -> bool:
    """Whether something still listens there at that time."""
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return False
        time.sleep(0.01)
    return True
