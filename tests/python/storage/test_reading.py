"""Reading where mmap is refused, where descriptors are few, while children are forked, into any memory."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import faultio
import flashpack
import pytest
import torch
from helpers import MIB, assert_same, noise
from page_cache import forget, resident
from processes import environment, python, succeed
from safetensors.torch import save_file
from torch import Tensor, nn

CHILD = "import json, sys, torch, flashpack\nfrom pathlib import Path\npath = json.loads(sys.argv[1])\n"


def tensors() -> dict[str, Tensor]:
    return {f"t{number}": noise(torch.float32, (300 + number, 1001), number) for number in range(6)}


# --- File systems that cannot map. -----------------------------------------------------------------

UNMAPPABLE = """
import faultio
with faultio.Faults("map:0:e19", Path(sys.argv[2])) as faults:
    loaded = flashpack.load_file(path, **json.loads(sys.argv[3]))
assert faults.acts > 0
report = flashpack.last_load()
assert report.bytes >= sum(tensor.nbytes for tensor in loaded.values()), report
assert report.verified_bytes == report.bytes, report
torch.save(loaded, sys.argv[4])
"""


@pytest.mark.parametrize("options", [{}, {"eager": False}, {"eager": False, "verify": True}])
@pytest.mark.parametrize("count", [1, 3])
def test_files_that_cannot_be_mapped_are_read(count: int, options: dict[str, bool], tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.flashpack" for number in range(count)]
    own = [dict(list(tensors().items())[number::count]) for number in range(count)]
    for path, part in zip(paths, own, strict=True):
        flashpack.save_file(part, path)
    code = CHILD + UNMAPPABLE
    request = json.dumps([*map(str, paths)] if count > 1 else str(paths[0]))
    arguments = (request, tmp_path, json.dumps(options), tmp_path / "loaded.pt")
    succeed(python("-c", code, *arguments, env=faultio.preloaded()))
    assert_same(torch.load(tmp_path / "loaded.pt"), {name: t for part in own for name, t in part.items()})


# --- Few descriptors. ------------------------------------------------------------------------------

FEW = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
loaded = flashpack.load_file(path, eager=json.loads(sys.argv[2]))
assert all(bool((tensor == int(name)).all()) for name, tensor in loaded.items())
model = torch.nn.ParameterDict({name: torch.zeros(4) for name in loaded})
flashpack.assign_from_file(model, path, eager=json.loads(sys.argv[2]))
assert all(bool((tensor == int(name)).all()) for name, tensor in model.items())
with flashpack.open(path) as file:
    assert file.get_slice("7")[1:3].tolist() == [7.0, 7.0]
print(len(loaded))
"""


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("kind", ["flashpack", "safetensors"])
def test_a_model_has_more_files_than_may_be_open(kind: str, eager: bool, tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 100
    state = {str(number): torch.full((4,), float(number)) for number in range(150)}
    if kind == "flashpack":
        flashpack.save_file(state, tmp_path / "model.flashpack", max_shard_size=16)
    else:
        files = {name: f"model-{name}.safetensors" for name in state}
        for name, file in files.items():
            save_file({name: state[name]}, tmp_path / file)
        index = json.dumps({"metadata": {}, "weight_map": files})
        (tmp_path / "model.safetensors.index.json").write_text(index)
    arguments = (json.dumps(str(tmp_path)), json.dumps(eager))
    assert succeed(python("-c", CHILD + FEW, *arguments)) == "150\n"


# --- Memory that exists. ---------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [None, False])
def test_direct_reads_into_any_memory_leave_nothing_in_the_page_cache(
    verify: bool | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHPACK_DIRECT_IO", "1")  # so that no sample is read
    state = {f"t{number}": noise(torch.uint8, (9 * MIB + 7 * number,), number) for number in range(5)}
    flashpack.save_file(state, path)
    forget(path)
    model = nn.ParameterDict(
        {name: nn.Parameter(torch.zeros_like(tensor), requires_grad=False) for name, tensor in state.items()}
    )
    flashpack.assign_from_file(model, path, in_place=True, verify=verify)
    held = resident(path)
    report = flashpack.last_load()
    assert report is not None
    assert (report.direct, report.from_disk, held < 0.1) == (True, True, True), (report, held)
    assert_same(dict(model.items()), state)


# --- Forks. ----------------------------------------------------------------------------------------

FORKS = """
import os, threading
torch.set_num_threads(1)  # others would be missing in children
expected = torch.load(sys.argv[2])
model = torch.nn.ParameterDict({name: torch.zeros_like(tensor) for name, tensor in expected.items()})
loads = {
    "eager": lambda: flashpack.load_file(path, eager=True),
    "in place": lambda: flashpack.assign_from_file(model, path, in_place=True) and dict(model.items()),
}[sys.argv[3]]

def bits(tensor):
    return tensor.view(torch.int32)

def differs(found):
    return [name for name, tensor in expected.items() if not torch.equal(bits(found[name]), bits(tensor))]

outcome, forked = [], 0
thread = threading.Thread(target=lambda: outcome.extend(loads() or dict(model.items()) for _ in range(5)))
thread.start()
while thread.is_alive() or not forked:
    child = os.fork()
    if child == 0:
        os._exit(len({tensor[-1, -1].item() for tensor in model.values()}) == 0)  # a child has what was there
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    forked += 1
thread.join()
assert len(outcome) == 5 and not any(map(differs, outcome))
child = os.fork()
if child == 0:
    os._exit(bool(differs(outcome[-1])))  # children have what was loaded
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(forked)
"""


@pytest.mark.parametrize("how", ["eager", "in place"])
def test_children_may_be_forked_during_direct_reads(how: str, path: Path, tmp_path: Path) -> None:
    state = {f"t{number}": noise(torch.float32, (1001, 1003 + number), number) for number in range(8)}
    flashpack.save_file(state, path)
    torch.save(state, tmp_path / "expected.pt")
    arguments = (json.dumps(str(path)), tmp_path / "expected.pt", how)
    env = environment(FLASHPACK_DIRECT_IO="1")
    assert int(succeed(python("-W", "ignore", "-c", CHILD + FORKS, *arguments, env=env))) > 0
