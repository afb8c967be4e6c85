"""Loads from object storage: ours, the peers', and a bare client that only receives.

Serves the models of `run.py` by `tests/faultstore`, which adds a latency, a rate for each connection and one
for all of them, over loopback. Checks the bytes that each contender gives, then times them in fresh
processes, in turn, and prints medians and what they come to beside each other. The server and its client
share the processors, and the files are in the page cache.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bare_client
import contests
import loads
import measure
import peers
from contests import BUILD, Row

if TYPE_CHECKING:
    from faultstore import Store

SETTINGS = {
    "20 ms, 100 MB/s a connection": {
        "latency_ms": 20,
        "connection_mb_per_s": 100,
        "total_mb_per_s": 2000,
    },
    "no limits": {},
}
BUCKET = "models"
REPOSITORY = "tests/models"  # the same, for a client of the Hub
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub(*, ours: bool) -> Callable[[str], loads.State]:
    """Downloads with huggingface_hub, then loads the file."""
    from huggingface_hub import hf_hub_download

    load = loads.ours(eager=True) if ours else loads.safetensors()

    def download(url: str) -> loads.State:
        name = url.partition(f"/{BUCKET}/")[2]
        with tempfile.TemporaryDirectory(dir=BUILD) as cache:
            return load(Path(hf_hub_download(REPOSITORY, name, cache_dir=cache)))

    return download


@dataclass(frozen=True)
class Contender:
    name: str
    start: Callable[[], Callable[[str], Any]]  # after imports: URL -> state
    peer: str = peers.OURS
    suffix: str = ".flashpack"
    scheme: str = "s3"
    env: dict[str, str] = field(default_factory=dict)
    is_limit: bool = False


def limit(threads: int, chunk: int | None) -> Contender:
    name = f"bare client, {threads} connections, {f'{chunk >> 20} MiB' if chunk else 'a request each'}"
    return Contender(name, lambda: bare_client.starting(threads, chunk), "none", scheme="http", is_limit=True)


VERIFIED, DEVICE, RUNAI = "verified", "to an emulated device", "runai-model-streamer 0.17.0"
_ours = functools.partial(loads.ours, eager=True)
LIMITS = [limit(32, 8 << 20), limit(64, 8 << 20), limit(32, None)]
PEERS = [
    Contender(RUNAI, loads.runai, f"{RUNAI}, s3", ".safetensors"),
    Contender(
        f"{RUNAI}, 32 connections",
        loads.runai,
        f"{RUNAI}, s3",
        ".safetensors",
        env={"RUNAI_STREAMER_CONCURRENCY": "32"},
    ),
    Contender(
        "huggingface_hub, then safetensors", lambda: hub(ours=False), peers.OURS, ".safetensors", "hub"
    ),
    Contender("huggingface_hub, then flashpack", lambda: hub(ours=True), scheme="hub"),
]
CONTENDERS = [
    *LIMITS,
    Contender(VERIFIED, _ours),
    Contender("not verified", functools.partial(_ours, verify=False)),
    Contender("unconverted safetensors", _ours, suffix=".safetensors"),
    Contender("by http://", _ours, scheme="http"),
    Contender(DEVICE, contests.to_device),
    *PEERS,
]
RAW, RUNAIS, HUBS = (tuple(each.name for each in some) for some in (LIMITS, PEERS[:2], PEERS[2:]))
BARS: list[contests.Bar] = [
    (0, VERIFIED, RAW, 0.9),
    (0, DEVICE, (VERIFIED,), 0.9),
    (0, VERIFIED, RUNAIS, 1.5),
    (0, VERIFIED, HUBS, 3),
]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run(json.loads(sys.argv[2]))), flush=True)
        os._exit(0)  # nothing is gained by freeing gigabytes
    names = [each.name for each in CONTENDERS]
    arguments = contests.parse(sys.argv[1:], __doc__, names, list(SETTINGS), scale=0.373)
    arguments.settings = arguments.settings or list(SETTINGS)[:1]
    bench = Bench(arguments.model, arguments.scale)
    rounds = functools.partial(functools.partial, bench.rounds)
    titles = {name: name for name in SETTINGS}
    contests.perform("remote_storage", arguments, CONTENDERS, rounds, titles, BARS, RUNAIS + HUBS)


class Bench:
    """The model's files, and runs of contenders on them."""

    def __init__(self, model: str, scale: float) -> None:
        import models

        self.model = (model, scale)
        self.folder = models.build(model, scale, BUILD)
        self.tiny = models.build(*models.TINY, BUILD)

    def rounds(self, setting: str, chosen: list[Contender], count: int, check: bool) -> list[Row]:
        import faultstore

        with tempfile.TemporaryDirectory() as root:
            Path(root, BUCKET).symlink_to(BUILD)
            revision = Path(root, REPOSITORY, "resolve/main")
            revision.parent.mkdir(parents=True)
            revision.symlink_to(BUILD)
            with faultstore.serving(Path(root)) as store:
                store.plan(headers={"X-Repo-Commit": COMMIT}, **SETTINGS[setting])
                run = functools.partial(self.run, store)
                return contests.in_turn(setting, chosen, count, check, run)

    def run(self, store: Store, contender: Contender, check: bool) -> Row:
        import faultstore

        path = self.folder / f"model{contender.suffix}"
        measure.make_hot(path)
        job = {
            "contender": contender.name,
            "urls": [url(store, contender, folder.name) for folder in (self.folder, self.tiny)],
            "source": str(path),
            "model": self.model,
            "check": check,
        }
        size = path.stat().st_size
        try:
            env = contests.environment(contender.peer, emulated=contender.name == DEVICE, data=check)
        except RuntimeError as error:
            return {"bytes": size, "error": str(error)[:300]}
        env |= {**store.environment(), **faultstore.NOWHERE, **contender.env}
        env |= {"RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0"}
        env |= {"HF_ENDPOINT": store.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        store.take()
        result = contests.in_a_child(__file__, job, env)
        requests = store.take(self.folder.name)
        return {
            "bytes": size,
            **result,
            "requests": len(requests),
            "requested_bytes": faultstore.sent(requests),
            "most_in_flight": faultstore.most_in_flight(requests),
        }


def url(store: Store, contender: Contender, folder: str) -> str:
    """What a contender loads."""
    key = f"{BUCKET}/{folder}/model{contender.suffix}"
    return f"s3://{key}" if contender.scheme == "s3" else store.url(key)


def run(job: Row) -> Row:
    """In a process of its own: what a load cost."""
    contender = next(each for each in CONTENDERS if each.name == job["contender"])
    call, (address, tiny) = contender.start(), job["urls"]
    if contender.is_limit:
        work = call(address)
    else:
        peers.version(contender.peer)
        call(tiny)  # what is imported, opened and started only on first use is so now
        work = functools.partial(call, address)
    result, spent = contests.cost(work, Path(job["source"]).stat().st_size, touched=False)
    if job["check"]:
        contests.check(result, job)
    return {**spent, "pinned": contests.pinned() if contender.name == DEVICE else ""}


if __name__ == "__main__":
    main()
