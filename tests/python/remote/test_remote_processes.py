"""Loads of URLs and processes: memory beyond the tensors, forks, and what local loads do not pay."""

from __future__ import annotations

import flashpack
import pytest
import torch
from faultstore import Store, most_in_flight
from helpers import MIB, noise
from processes import environment, python, succeed

WINDOW = 256 * MIB  # of staging that a load may have beside its tensors
SIZE = 768 * MIB
SLACK = 48 * MIB  # threads' stacks, the allocator
TIMEOUT_SECONDS = 120

FORK = """if True:
    import os, signal, sys
    import flashpack
    def load():
        got = flashpack.load_file(sys.argv[1])
        return sum(int(tensor[-1]) for tensor in got.values())
    signal.alarm(60)
    want = load()
    threads = len(os.listdir("/proc/self/task"))
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            signal.alarm(60)
            os._exit(load() != want)
        children.append(child)
    assert load() == want
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    while len(os.listdir("/proc/self/task")) > threads:  # else the alarm ends it
        pass
    print("all fine")
"""
MEMORY = """if True:
    import sys
    from pathlib import Path
    import flashpack, torch
    def memory(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
    flashpack.load_file(sys.argv[1], names=["t0"])
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    got = flashpack.load_file(sys.argv[1])
    assert len(got) == 12
    print(memory("VmHWM") - before - sum(tensor.nbytes for tensor in got.values()))
"""
LOCAL = """if True:
    import sys
    import flashpack
    for load in (flashpack.load_file, lambda path: flashpack.open(path).keys(), flashpack.verify_file):
        load(sys.argv[1])
    print("flashpack_remote" in open("/proc/self/maps").read())
"""
MODULES = """if True:
    import sys
    import flashpack
    flashpack.load_file(sys.argv[1])
    print(*sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[2:])))
"""
CLIENTS = ("boto3", "botocore", "fsspec", "requests", "httpx2", "huggingface_hub", "urllib3", "aiohttp")


def run(code: str, *args: object) -> str:
    return succeed(python("-c", code, *args, env=environment(), timeout=TIMEOUT_SECONDS)).strip()


@pytest.mark.usefixtures("model")
def test_a_fork_after_a_load_loads_too() -> None:
    assert run(FORK, "s3://bucket/folder/model.flashpack") == "all fine"


@pytest.fixture
def large(s3: Store) -> Store:
    (s3.folder / "bucket").mkdir()
    data = {f"t{number}": noise(torch.uint8, (SIZE // 12,), number) for number in range(12)}
    flashpack.save_file(data, s3.folder / "bucket/large.flashpack")
    s3.plan(latency_ms=200)
    return s3


def test_memory_beyond_the_tensors_is_within_the_window(large: Store) -> None:
    assert int(run(MEMORY, "s3://bucket/large.flashpack")) <= WINDOW + SLACK
    requests = large.take()
    assert most_in_flight(requests) >= 24  # so that this means something


def test_local_loads_open_no_library_of_stores(model: Store) -> None:
    local = model.folder / "bucket/folder/model.flashpack"
    assert run(LOCAL, local) == "False"
    assert run(LOCAL, "s3://bucket/folder/model.flashpack") == "True"


def test_local_loads_import_no_client(model: Store) -> None:
    local = model.folder / "bucket/folder/model.flashpack"
    assert run(MODULES, local, *CLIENTS) == ""
    assert run(MODULES, "s3://bucket/folder/model.flashpack", *CLIENTS) == ""


def test_the_command_line_starts_without_them(model: Store) -> None:
    code = "import sys; sys.argv[1:] = ['metadata', sys.argv[1]]\n"
    code += "from flashpack.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, 'flashpack_remote' in open('/proc/self/maps').read())"
    local = model.folder / "bucket/folder/model.flashpack"
    assert run(code, local).splitlines()[-1] == "False False"
