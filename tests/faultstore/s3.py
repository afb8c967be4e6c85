"""S3's requests for other things than an object's bytes: listings and uploads, in path style."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from objects import Found, Objects
from wire import Answer, Request

_MOST_OF_A_PAGE = 1000
_CHANGED = "2026-01-01T00:00:00.000Z"  # nobody reads it


def error(status: int, code: str, message: str, **headers: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    return xml(text, status, {name.replace("_", "-"): value for name, value in headers.items()})


def xml(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return Answer(status, body, {"Content-Type": "application/xml", **(headers or {})})


def answer(objects: Objects, request: Request, body: Iterable[bytes]) -> Answer:
    method, query = request.method, request.query
    if method == "GET":
        return listing(objects, request)
    data = body if method in ("PUT", "POST") else ()
    if method == "PUT" and "uploadId" in query:
        return part(objects, query["uploadId"], int(query["partNumber"]), data)
    if method == "PUT":
        return tagged(objects.put(request.key, [stored(objects, data)]))
    text = b"".join(data)
    if method == "POST" and "uploads" in query:
        return begin(request.key)
    if method == "POST" and "uploadId" in query:
        return complete(objects, request, text)
    if method == "DELETE" and "uploadId" in query:
        for left in parts(objects, query["uploadId"]):
            left.unlink()
        return Answer(204)
    if method == "DELETE":
        objects.path(request.key).unlink(missing_ok=True)
        return Answer(204)
    return error(501, "NotImplemented", f"{method} {request.target}")


def listing(objects: Objects, request: Request) -> Answer:
    """ListObjectsV2."""
    bucket, query = request.key.strip("/"), request.query
    if not objects.path(bucket).is_dir():
        return error(404, "NoSuchBucket", "The specified bucket does not exist")
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    seen: dict[str, bool] = {}  # whether it stands for several
    for key in objects.keys(bucket):
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            folder = rest.partition(delimiter)[0] + delimiter if delimiter and delimiter in rest else ""
            seen[prefix + folder if folder else key] = bool(folder)
    after = query.get("continuation-token") or query.get("start-after", "")
    names = [name for name in seen if name > after]
    page = names[: int(query.get("max-keys", _MOST_OF_A_PAGE))]
    text = "".join(entry(objects, bucket, name, several=seen[name]) for name in page)
    is_cut = len(page) < len(names)
    text += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if is_cut else ""
    facts = f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
    facts += f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>"
    return xml(f"<ListBucketResult>{facts}{text}</ListBucketResult>")


def entry(objects: Objects, bucket: str, name: str, *, several: bool) -> str:
    if several:
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    found = objects.find(f"{bucket}/{name}")
    size, tag = (found.size, found.tag) if found else (0, "")
    about = f"<Size>{size}</Size><ETag>{escape(tag)}</ETag><LastModified>{_CHANGED}</LastModified>"
    return f"<Contents><Key>{escape(name)}</Key>{about}<StorageClass>STANDARD</StorageClass></Contents>"


def begin(key: str) -> Answer:
    made = uuid.uuid4().hex
    return xml(
        f"<InitiateMultipartUploadResult><Key>{escape(key)}</Key><UploadId>{made}</UploadId>"
        "</InitiateMultipartUploadResult>"
    )


def stored(objects: Objects, body: Iterable[bytes], name: str = "") -> Path:
    """The bytes in a file that is not an object yet."""
    path = objects.folder() / (name or uuid.uuid4().hex)
    with path.open("wb") as file:
        file.writelines(body)
    return path


def part(objects: Objects, upload: str, number: int, body: Iterable[bytes]) -> Answer:
    fresh = stored(objects, body)
    path = objects.folder() / f"{upload}-{number:05}"
    fresh.replace(path)
    found = Found.of(path)
    assert found is not None
    return tagged(found)


def parts(objects: Objects, upload: str) -> list[Path]:
    return sorted(objects.folder().glob(f"{upload}-*"))


def complete(objects: Objects, request: Request, text: bytes) -> Answer:
    upload = request.query["uploadId"]
    numbers = [int(number) for number in re.findall(rb"<PartNumber>\s*(\d+)\s*</PartNumber>", text)]
    chosen = [objects.folder() / f"{upload}-{number:05}" for number in numbers]
    if not chosen or not all(path.exists() for path in chosen):
        return error(400, "InvalidPart", "One or more of the specified parts could not be found.")
    found = objects.put(request.key, chosen)
    tag = f"<ETag>{escape(found.tag)}</ETag>"
    return xml(f"<CompleteMultipartUploadResult>{tag}</CompleteMultipartUploadResult>")


def tagged(found: Found) -> Answer:
    return Answer(headers={"ETag": found.tag})
