"""Loads from storage that makes readers wait: ours, the peers', and bare direct reads.

Mounts `benches/slowfs`, which adds a latency, a rate for each request and one for all, over the models of
`run.py`. Checks the bytes that each contender gives, then times them in fresh processes, in turn, each with
nothing of its file in the page cache, and prints medians and what they come to beside each other. The files
behind the mount are in the page cache: what takes time is what slowfs adds. Needs /dev/fuse, and root.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contests
import limits
import loads
import measure
import peers
from contests import BUILD, Row
from limits import Limit
from loads import Load

SETTINGS = {
    "20 ms, 50 MB/s a request": {"latency_ms": 20, "request_mb_per_s": 50, "total_mb_per_s": 1000},
    "5 ms, 200 MB/s a request": {"latency_ms": 5, "request_mb_per_s": 200, "total_mb_per_s": 2000},
}


@dataclass(frozen=True)
class Contender:
    """A load of a model; until every page has been touched where `touched`."""

    name: str
    load: Load | Limit
    model: str = "whole"
    touched: bool = False

    @property
    def peer(self) -> str:
        return self.load.peer if isinstance(self.load, Load) else "none"


def _find(kind: list[Load], name: str) -> Load:
    return next(load for load in kind if load.name == name)


def _peers() -> Iterator[Contender]:
    for name in (
        *("flashpack 0.4.5, CPU_PARALLEL_READ", "safetensors 0.8.0, pread"),
        *("fastsafetensors 0.5.0, nogds", "runai-model-streamer 0.17.0"),
    ):
        yield Contender(name, _find(loads.EAGER, name))
    yield Contender("safetensors 0.8.0", _find(loads.LAZY, "safetensors 0.8.0"), touched=True)


EAGER, MAPPED, DEVICE, ONE, SHARDS = (
    *("eager, verified", "mapped, touched", "to an emulated device"),
    *("200 tensors, one file", "200 tensors, a shard each"),
)
_OURS = _find(loads.EAGER, "flashpack")
CONTENDERS = [
    *(Contender(limit.name, limit) for limit in limits.SLOW),
    Contender(EAGER, _OURS),
    Contender("eager", _find(loads.EAGER, "flashpack, not verified")),
    Contender(MAPPED, _find(loads.LAZY, "flashpack"), touched=True),
    Contender("unconverted safetensors, eager", _find(loads.EAGER, "flashpack, of .safetensors")),
    Contender(DEVICE, Load(DEVICE, peers.OURS, ".flashpack", contests.to_device)),
    Contender(ONE, _OURS, "parts"),
    Contender(SHARDS, _OURS, "shards"),
    *_peers(),
]
RAW = tuple(limit.name for limit in limits.SLOW)
PEERS = tuple(contender.name for contender in _peers())
BARS: list[contests.Bar] = [
    *((0, ours, RAW, 0.9) for ours in (EAGER, MAPPED)),
    *((0, ours, ("runai-model-streamer 0.17.0",), 1.5) for ours in (EAGER, MAPPED)),
    *((0, ours, ("flashpack 0.4.5, CPU_PARALLEL_READ",), 2.5) for ours in (EAGER, MAPPED)),
    *((0, ours, ("safetensors 0.8.0", "safetensors 0.8.0, pread"), 10) for ours in (EAGER, MAPPED)),
    *((1, ours, RAW, 0.9) for ours in (EAGER, MAPPED)),
    *((1, ours, PEERS, 1.0) for ours in (EAGER, MAPPED)),
    *((setting, DEVICE, (EAGER,), 0.9) for setting in (0, 1)),
    (1, SHARDS, (ONE,), 1 / 1.2),
]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run(json.loads(sys.argv[2]))), flush=True)
        os._exit(0)  # nothing is gained by freeing gigabytes
    names = [each.name for each in CONTENDERS]
    arguments = contests.parse(sys.argv[1:], __doc__, names, list(SETTINGS), scale=0.3)
    arguments.settings = arguments.settings or list(SETTINGS)[1 if arguments.quick else 0 :]
    bench = Bench(arguments.model, arguments.scale)
    rounds = functools.partial(functools.partial, bench.rounds)
    titles = {name: f"{name}, {setting['total_mb_per_s']} MB/s in all" for name, setting in SETTINGS.items()}
    contests.perform("slow_storage", arguments, CONTENDERS, rounds, titles, BARS, PEERS)


class Bench:
    """The models' files, and runs of contenders on them."""

    def __init__(self, model: str, scale: float) -> None:
        import models

        parts = (scale / 0.3 if scale >= 0.3 else 0.01) if model == "1.3B" else 0.01
        self.models = {"whole": (model, scale), "parts": ("parts", parts), "shards": ("parts", parts)}
        self.folders = {name: models.build(*made, BUILD) for name, made in self.models.items()}
        self.folders["shards"] = sharded(self.folders["parts"], *self.models["parts"])
        self.tiny = models.build(*models.TINY, BUILD)

    def rounds(self, setting: str, chosen: list[Contender], count: int, check: bool) -> list[Row]:
        import slowfs

        with (
            tempfile.TemporaryDirectory() as mount,
            slowfs.mounted(BUILD, Path(mount), **SETTINGS[setting]),
        ):
            run = functools.partial(self.run, Path(mount))
            return contests.in_turn(setting, chosen, count, check, run)

    def path(self, contender: Contender, root: Path) -> Path:
        """What a contender loads, with its models below `root`."""
        folder = root / self.folders[contender.model].name
        suffix = contender.load.suffix if isinstance(contender.load, Load) else ".flashpack"
        return folder if contender.model == "shards" else folder / f"model{suffix}"

    def run(self, mount: Path, contender: Contender, check: bool) -> Row:
        for file in files(self.path(contender, BUILD)):
            measure.make_hot(file)
        job = {
            "contender": contender.name,
            "path": str(self.path(contender, mount)),
            "source": str(self.path(contender, BUILD)),
            "mount": str(mount),
            "tiny": str(self.tiny),
            "model": self.models[contender.model],
            "check": check,
        }
        size = sum(file.stat().st_size for file in files(self.path(contender, BUILD)))
        try:
            env = contests.environment(contender.peer, emulated=contender.name == DEVICE, data=check)
        except RuntimeError as error:
            return {"bytes": size, "error": str(error)[:300]}
        return {"bytes": size, **contests.in_a_child(__file__, job, env)}


def sharded(folder: Path, model: str, scale: float) -> Path:
    """The model with a file for each tensor, beside `folder`, which has it in one."""
    import flashpack
    import models

    target = folder.with_name(f"{folder.name}-shards")
    if not target.exists():
        tensors = models.state(model, scale)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix="new-"))
        largest = max(tensor.nbytes for tensor in tensors.values())
        flashpack.save_file(tensors, fresh / "model.flashpack", max_shard_size=largest)
        fresh.rename(target)
    return target


def files(path: Path) -> list[Path]:
    return [*path.iterdir()] if path.is_dir() else [path]


def run(job: Row) -> Row:
    """In a process of its own: what a load cost."""
    contender = next(each for each in CONTENDERS if each.name == job["contender"])
    path = Path(job["path"])
    work = of_limit(contender.load, path) if isinstance(contender.load, Limit) else of_load(contender, job)
    for file in files(path):
        measure.make_cold(file)
    report = Path(job["mount"], ".slowfs")
    report.read_text()
    size = sum(file.stat().st_size for file in files(path))
    result, spent = contests.cost(work, size, touched=contender.touched)
    told = json.loads(report.read_text())
    if job["check"]:
        contests.check(result, job)
    return {
        **spent,
        "requests": told["requests"],
        "requested_bytes": told["bytes"],
        "most_in_flight": told["most_in_flight"],
        "pinned": contests.pinned() if contender.name == DEVICE else "",
    }


def of_limit(limit: Limit, path: Path) -> Callable[[], Any]:
    return limit.start(path)


def of_load(contender: Contender, job: Row) -> Callable[[], Any]:
    assert isinstance(contender.load, Load)
    call, path = contender.load.start(), Path(job["path"])
    peers.version(contender.peer)
    # What is imported, opened and started only on first use is so now.
    call(Path(job["tiny"], f"model{contender.load.suffix}"))
    return lambda: call(path)


if __name__ == "__main__":
    main()
