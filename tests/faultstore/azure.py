"""Azure's listings and uploads, of blobs at /account/container/key."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from xml.sax.saxutils import escape

import s3
from objects import Objects
from wire import Answer, Request


def is_for(request: Request) -> bool:
    return "comp" in request.query or "x-ms-blob-type" in request.headers


def answer(objects: Objects, request: Request, body: Iterable[bytes]) -> Answer:
    command = request.query.get("comp", "")
    if command == "list":
        return listing(objects, request)
    if command == "block":
        block = base64.urlsafe_b64encode(request.query["blockid"].encode()).decode()
        s3.stored(objects, body, f"{_name(request)}-{block}")
        return Answer(201)
    if command == "blocklist":
        ids = re.findall(r"<(?:Latest|Uncommitted)>([^<]*)<", b"".join(body).decode())
        blocks = [base64.urlsafe_b64encode(each.encode()).decode() for each in ids]
        paths = [objects.folder() / f"{_name(request)}-{block}" for block in blocks]
        if not all(path.exists() for path in paths):
            return s3.error(400, "InvalidBlockList", "The specified block list is invalid.")
        return Answer(201, headers={"ETag": objects.put(request.key, paths).tag})
    return Answer(201, headers={"ETag": objects.put(request.key, [s3.stored(objects, body)]).tag})


def _name(request: Request) -> str:
    return request.key.strip("/").replace("/", "%")


def listing(objects: Objects, request: Request) -> Answer:
    container, prefix = request.key.strip("/"), request.query.get("prefix", "")
    delimiter = request.query.get("delimiter", "")
    text = ""
    for key in objects.keys(container):
        if key.startswith(prefix) and not (delimiter and delimiter in key[len(prefix) :]):
            found = objects.find(f"{container}/{key}")
            size = found.size if found else 0
            about = f"<Properties><Content-Length>{size}</Content-Length></Properties>"
            text += f"<Blob><Name>{escape(key)}</Name>{about}</Blob>"
    return s3.xml(f"<EnumerationResults><Blobs>{text}</Blobs><NextMarker/></EnumerationResults>")
