"""Runs in a process of their own, one to be timed: prints JSON with what each cost, or with its error."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import limits
import measure
import peers
from groups import GROUPS
from limits import Limit
from loads import Load
from saves import Convert, Save

Job = dict[str, Any]
Result = dict[str, Any]


def main() -> None:
    print(json.dumps([attempt(job) for job in json.loads(sys.argv[1])]), flush=True)
    os._exit(0)  # nothing is gained by freeing gigabytes


def attempt(job: Job) -> Result:
    try:
        return run(job)
    except Exception as error:  # noqa: BLE001 (whatever a peer raises is a result of the comparison)
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def run(job: Job) -> Result:
    contender = GROUPS[job["group"]].find(job["state"], job["contender"])
    work = {Limit: run_limit, Load: run_load, Save: run_save, Convert: run_convert}[type(contender)]
    result = work(contender, job, Path(job["folder"]))
    version = "" if isinstance(contender, Limit) else peers.version(contender.peer)
    return result | {"version": version}


def run_limit(limit: Limit, job: Job, folder: Path) -> Result:
    path = folder / "model.flashpack"
    run = limit.start(path)
    if job["group"] == "save":
        ready_to_write(path.stat().st_size)
        cached = None
    else:
        cached = measure.prepare(path, job["state"])
    if job["state"] == "hot" and job["group"] in ("eager", "lazy"):
        run()  # as loads do, see there
    result, cost = measure.measured(run)
    if job["check"]:
        # What a write wrote, what a read read; what was copied in memory is not the file's.
        written = path.with_name("raw")
        if not limit.name.startswith("memcpy"):
            limits.check(written if written.exists() else path, result)
    limits.clean(folder)
    return cost | {"cached": cached}


def run_load(load: Load, job: Job, folder: Path) -> Result:
    call = load.start()
    path = folder / f"model{load.suffix}"
    import models

    def module_of(name: str, scale: float) -> Any:
        return models.module(name, scale) if job["group"] == "module" else None

    def load_into(model: Any, path: Path) -> Any:
        return call(path) if model is None else call(model, path)

    # What is imported, opened and started only on first use is so now.
    load_into(module_of(*models.TINY), Path(job["tiny"], path.name))
    model = module_of(job["model"], job["scale"])
    cached = measure.prepare(path, job["state"], load.copies)
    if model is None and job["state"] == "hot":
        # What this frees the next one gets; other free memory may have gone back to the machine's host.
        call(path)
    state, cost = measure.measured(lambda: load_into(model, path))
    tensors: Mapping[str, Any] = model.state_dict() if model is not None else state
    cost = measure.then_touched(cost, tensors.values())
    if job["check"]:
        models.check(tensors, job["model"], job["scale"])
    return cost | {"cached": cached}


def run_save(save: Save, job: Job, folder: Path) -> Result:
    call, target = save.start(), folder / f"out-{os.getpid()}{save.suffix}"
    import models

    state = models.state(job["model"], job["scale"])
    try:
        call(models.state(*models.TINY), target)  # what starts on first use has started
        target.unlink()
        ready_to_write(sum(tensor.nbytes for tensor in state.values()))
        _, cost = measure.measured(lambda: (call(state, target), to_disk(target)))
        if job["check"]:
            models.check(save.load()(target), job["model"], job["scale"])
    finally:
        target.unlink(missing_ok=True)
    return cost


def run_convert(convert: Convert, job: Job, folder: Path) -> Result:
    source, target = folder / "model.safetensors", folder / f"out-{os.getpid()}{convert.suffix}"
    cached = measure.prepare(source, "hot")
    os.sync()
    measure.reset_peak()  # which a child process begins with
    try:
        started = time.perf_counter()
        done = subprocess.run(convert.command(source, target), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
        to_disk(target)
        wall = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        if job["check"]:
            import models

            models.check(convert.load()(target), job["model"], job["scale"])
    finally:
        target.unlink(missing_ok=True)
    return {
        "wall_s": wall,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_rss": used.ru_maxrss << 10,
        "cached": cached,
    }


def ready_to_write(size: int) -> None:
    """Make memory ready for a copy and for the page cache, and bring what earlier runs left to the disk."""
    measure.ready_memory(2 * size)
    os.sync()


def to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
