"""What the stand-in for a model hub answers to each request of its HTTP API."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import OWNER, OWNER_TOKEN, TOKENS, Commit, Hub, Repository, blob_id, is_large

ID = r"(?P<repo_id>[\w.-]+(?:/[\w.-]+)?)"


@dataclass
class Reply:
    """What goes back: JSON unless it is bytes."""

    status: int = 200
    content: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The content as it is sent."""
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


class RefusalError(Exception):
    """A request that is answered with an error, as the hub marks it for its client."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        marks = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.reply = Reply(status, {"error": message}, marks)


@dataclass
class Request:
    """One request, taken apart."""

    hub: Hub
    method: str
    query: dict[str, list[str]]
    token: str | None
    body: bytes
    repo_id: str = ""
    revision: str = "main"
    path: str = ""

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def repository(self) -> Repository:
        """The one that the request names. Who may not see it is told what the hub tells."""
        repository = self.hub.repositories.get(self.repo_id)
        if self.token is not None and self.token not in TOKENS:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        if repository is None or (repository.private and not self.hub.may_read(repository, self.token)):
            status = HTTPStatus.UNAUTHORIZED if self.token is None else HTTPStatus.NOT_FOUND
            raise RefusalError(status, "Repository not found", "RepoNotFound")
        if not self.hub.may_read(repository, self.token):
            raise RefusalError(403, "Access to this model is restricted", "GatedRepo")
        return repository

    def commit(self) -> Commit:
        """The commit that the request names."""
        found = self.repository().find(self.revision)
        if found is None:
            raise RefusalError(404, f"Invalid rev id: {self.revision}", "RevisionNotFound")
        return found

    def writable(self) -> Repository:
        """The repository, for a token that may write to it, or only wants to propose something."""
        repository = self.repository()
        if self.token is None:
            raise RefusalError(401, "Invalid username or password.")
        if self.token != OWNER_TOKEN and "create_pr" not in self.query:
            raise RefusalError(403, "Forbidden: pass `create_pr=1` to create a Pull Request")
        return repository


def whoami(request: Request) -> Reply:
    if request.token not in TOKENS:
        raise RefusalError(401, "Invalid credentials in Authorization header")
    return Reply(content={"type": "user", "name": OWNER, "orgs": [], "auth": {}})


def create(request: Request) -> Reply:
    wanted = request.json
    repo_id = f"{wanted.get('organization') or OWNER}/{wanted['name']}"
    if request.token is None:
        raise RefusalError(401, "Invalid username or password.")
    if request.token != OWNER_TOKEN or not repo_id.startswith(f"{OWNER}/"):
        raise RefusalError(403, f"You don't have the rights to create {repo_id}")
    answer = {"url": f"{request.hub.url}/{repo_id}", "name": repo_id}
    if repo_id in request.hub.repositories:
        return Reply(409, {**answer, "error": "You already created this model repo"})
    request.hub.add(repo_id, {".gitattributes": b""}, private=wanted.get("visibility") == "private")
    return Reply(content=answer)


def info(request: Request) -> Reply:
    commit = request.commit()
    siblings = [{"rfilename": path} for path in commit.files]
    private = request.repository().private
    return Reply(content={"id": request.repo_id, "sha": commit.sha, "private": private, "siblings": siblings})


def tree(request: Request) -> Reply:
    files = request.commit().files.items()
    listed = [describe(path, data) for path, data in files if path.startswith(f"{request.path}/".lstrip("/"))]
    if request.path and not listed:
        raise RefusalError(404, f"{request.path} does not exist", "EntryNotFound")
    return Reply(content=listed)


def describe(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": blob_id(data), "size": len(data), "path": path}
    if is_large(path):
        oid = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
    return entry


def resolve(request: Request) -> Reply:
    commit = request.commit()
    headers = {"X-Repo-Commit": commit.sha}
    if request.path not in commit.files:
        refusal = RefusalError(404, "Entry not found", "EntryNotFound")
        refusal.reply.headers.update(headers)
        raise refusal
    data = commit.files[request.path]
    if not is_large(request.path):
        return Reply(content=data, headers={**headers, "ETag": f'"{blob_id(data)}"'})
    oid = hashlib.sha256(data).hexdigest()
    request.hub.large[oid] = data
    linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(data))}
    return Reply(302, b"", {**headers, **linked, "Location": f"{request.hub.store_url}/large/{oid}"})


def large_file(request: Request) -> Reply:
    if request.method == "PUT":
        if hashlib.sha256(request.body).hexdigest() != request.path:
            raise RefusalError(400, "the content does not have this hash")
        request.hub.large[request.path] = request.body
        return Reply()
    return Reply(content=request.hub.large[request.path])


def preupload(request: Request) -> Reply:
    request.writable()
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if is_large(file["path"]) else "regular",
            "shouldIgnore": False,
        }
        for file in request.json["files"]
    ]
    return Reply(content={"files": files})


def batch(request: Request) -> Reply:
    request.repository()
    objects = [
        {**wanted, "actions": {"upload": {"href": f"{request.hub.url}/large/{wanted['oid']}"}}}
        for wanted in request.json["objects"]
    ]
    return Reply(content={"transfer": "basic", "objects": objects})


def commit(request: Request) -> Reply:
    repository = request.writable()
    items = [json.loads(line) for line in request.body.splitlines()]
    summary = next(item["value"]["summary"] for item in items if item["key"] == "header")
    files = {}
    for item in items:
        value = item["value"]
        if item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = request.hub.large[value["oid"]]
    number = len(repository.pull_requests) + 1
    proposed = "create_pr" in request.query
    ref = f"refs/pr/{number}" if proposed else request.revision
    made = repository.commit(files, summary, ref, parent=request.revision)
    answer = {"commitUrl": f"{request.hub.url}/{request.repo_id}/commit/{made.sha}", "commitOid": made.sha}
    if proposed:
        answer["pullRequestUrl"] = f"{request.hub.url}/{request.repo_id}/discussions/{number}"
    return Reply(content=answer)


def discussions(request: Request) -> Reply:
    repository = request.repository()
    if request.method == "GET":
        return Reply(content={"discussions": [], "count": 0, "start": 0})
    number = len(repository.pull_requests) + 1
    repository.commit({}, request.json["title"], f"refs/pr/{number}", parent="main")
    return Reply(content={"num": number, "pullRequest": {}})


def valid(_: Request) -> Reply:
    return Reply(content={"errors": [], "warnings": []})


REV = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[[Request], Reply]]] = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", valid),
    ("GET|PUT|HEAD", r"/large/(?P<path>[0-9a-f]{64})", large_file),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", batch),
    ("POST", rf"/api/models/{ID}/preupload/{REV}", preupload),
    ("POST", rf"/api/models/{ID}/commit/{REV}", commit),
    ("GET|POST", rf"/api/models/{ID}/discussions", discussions),
    ("GET", rf"/api/models/{ID}/tree/{REV}(?:/(?P<path>.+))?", tree),
    ("GET", rf"/api/models/{ID}/revision/{REV}", info),
    ("GET", rf"/api/models/{ID}", info),
    ("GET|HEAD", rf"/{ID}/resolve/{REV}/(?P<path>.+)", resolve),
]


def answer(hub: Hub, method: str, target: str, authorization: str | None, body: bytes) -> Reply:
    """The reply to one request; what the hub does not know is a 404."""
    url = urlsplit(target)
    token = authorization.removeprefix("Bearer ") if authorization else None
    hub.requests.append((method, unquote(url.path)))
    for methods, pattern, handle in ROUTES:
        found = re.fullmatch(pattern, url.path)
        if found and method in methods.split("|"):
            parts = {name: unquote(part) for name, part in found.groupdict().items() if part is not None}
            try:
                return handle(Request(hub, method, parse_qs(url.query), token, body, **parts))
            except RefusalError as refusal:
                return refusal.reply
    return RefusalError(404, f"the stand-in has no {method} {url.path}").reply
