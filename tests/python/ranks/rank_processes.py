"""Programs run by several ranks, each a process; they end by themselves, whatever happens to one of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import warm
from processes import environment, succeed

GROUP_SECONDS = 100
JOIN_SECONDS = 150
LOST = "lost"


def run(program: Callable[..., Any], size: int, *args: Any, **env: str) -> list[Any]:
    """What `program(*args)` returned (JSON) on each of `size` ranks; "lost" for one that was killed.

    A process that has the program's module imported forks them.
    """
    order = json.dumps([program.__module__, program.__name__, size, args])
    imports, seconds = (program.__module__,), JOIN_SECONDS + GROUP_SECONDS
    done = warm.call(__file__, "launch", order, env=environment(**env), imports=imports, timeout=seconds)
    output = succeed(done)
    return json.loads(output.splitlines()[-1])


def launch(order: str) -> None:
    """Fork the ranks, and print what they returned."""
    module, name, size, args = json.loads(order)
    program = getattr(__import__(module), name)
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_rank, args=(rank, size, folder, program, args)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(JOIN_SECONDS)
        late = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for rank in late:
            processes[rank].kill()
        if late:
            sys.exit(f"ranks {late} of {size} did not end")
        results = [_result(Path(folder, str(rank))) for rank in range(size)]
    print("\n" + json.dumps(results), flush=True)
    os._exit(0)  # what was imported takes longer to tear down than most programs take


def _result(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else LOST


def _rank(rank: int, size: int, folder: str, program: Callable[..., Any], args: list[Any]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=GROUP_SECONDS),
    )
    try:
        result = program(*args)
    except BaseException:  # noqa: BLE001 (the test looks at it)
        traceback.print_exc()
        result = {"failed": traceback.format_exc()}
    path = Path(folder, f"{rank}.part")
    path.write_text(json.dumps(result))
    path.rename(path.with_name(str(rank)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # without taking leave of ranks that may be gone
