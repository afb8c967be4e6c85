"""An unmodified torch believes in the emulated devices, in every mode and with each of its allocators."""

from __future__ import annotations

import threading
import warnings

import fakecuda
import pytest
import torch

pytestmark = pytest.mark.usefixtures("emulator")

MIB = 1 << 20


def on_device(size: int, device: str = "cuda") -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def pinned(size: int) -> torch.Tensor:
    return torch.randint(0, 255, (size,), dtype=torch.uint8).pin_memory()


# --- What works. -----------------------------------------------------------------------------------


def copies_in_both_directions(device: str) -> None:
    host = torch.arange(100_000, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool):
        there = host.view(torch.uint8).to(dtype).to(device)
        assert there.device == torch.device(device)
        assert torch.equal(there.cpu().view(torch.uint8), host.view(torch.uint8).to(dtype).view(torch.uint8))
    source, to, back = pinned(MIB), on_device(MIB, device), pinned(MIB)
    to.copy_(source, non_blocking=True)
    back.copy_(to, non_blocking=True)
    torch.cuda.synchronize(device)
    assert torch.equal(back, source)
    part = to.view(torch.float32).narrow(0, 100, 1000).cpu()
    assert torch.equal(part.view(torch.uint8), source[400:4400])
    assert torch.equal(to.clone().cpu(), source)
    assert torch.equal(torch.ones(33, device=device).cpu(), torch.ones(33))


def streams_and_events(device: str) -> None:
    with torch.cuda.device(device):
        source, to, further = pinned(MIB), on_device(MIB), on_device(MIB)
        one, two, arrived = torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.Event()
        for stream in (one, two):  # the memory is the current stream's
            stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(one):
            to.copy_(source, non_blocking=True)
            arrived.record()
        two.wait_event(arrived)
        with torch.cuda.stream(two):
            further.copy_(to, non_blocking=True)
        torch.cuda.current_stream().wait_stream(two)
        assert torch.equal(further.cpu(), source)
        assert arrived.query()


def modules(device: str) -> None:
    module = torch.nn.Linear(64, 32)
    expected = module.weight.detach().clone()
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    assert torch.equal(module.to(device).weight.detach().cpu(), expected)
    hollow = torch.nn.Linear(64, 32, device="meta").to_empty(device=device)
    hollow.load_state_dict(state)
    assert torch.equal(hollow.weight.detach().cpu(), expected)


def threads(device: str) -> None:
    right: list[bool] = []

    def work() -> None:
        stream, source, to = torch.cuda.Stream(device), pinned(MIB), on_device(MIB, device)
        with torch.cuda.stream(stream):
            stream.wait_stream(torch.cuda.default_stream(device))
            for _ in range(5):
                to.copy_(source, non_blocking=True)
        stream.synchronize()
        right.append(torch.equal(to.cpu(), source))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert right == [True] * 4


def works() -> None:
    for index in range(torch.cuda.device_count()):
        for part in (copies_in_both_directions, streams_and_events, modules, threads):
            part(f"cuda:{index}")
    assert fakecuda.counter("async_copies") > 0


@pytest.mark.parametrize(("mode", "devices"), [*((mode, 2) for mode in fakecuda.MODES), ("strict", 1)])
def test_torch_works(mode: str, devices: int) -> None:
    counters = fakecuda.call(works, mode=mode, devices=devices).check().counters
    assert not counters["races"] + counters["frees_in_flight"]


ALLOCATORS = ["expandable_segments:True", "backend:cudaMallocAsync"]


def allocator(configuration: str) -> None:
    many = [on_device(3 * MIB) for _ in range(20)]
    source, large = pinned(50 * MIB), on_device(50 * MIB)
    large.copy_(source, non_blocking=True)
    assert torch.equal(large.cpu(), source)
    if "expandable" in configuration:
        assert torch.cuda.memory_snapshot()[0]["is_expandable"]
    else:
        assert torch.cuda.get_allocator_backend() == "cudaMallocAsync"
    del many, large
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    assert fakecuda.counter("device_bytes") == 0


@pytest.mark.parametrize("configuration", ALLOCATORS)
def test_other_allocators_of_torch(configuration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", configuration)
    fakecuda.call(allocator, configuration, mode="strict").check()


# --- What is refused, found and counted. -----------------------------------------------------------


def kernels_are_refused() -> None:
    there = torch.arange(24, dtype=torch.float32).reshape(4, 6).cuda()
    for operator in (
        lambda: there + 1,
        lambda: torch.equal(there, there.clone()),
        lambda: there.half(),
        lambda: there.t().contiguous(),
    ):
        with pytest.raises(Exception, match="not supported"):  # torch raises several types
            operator()
    assert fakecuda.counter("kernels_refused") >= 4


def memory_ends() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        on_device(9 << 30)
    with fakecuda.faults("cudaMalloc:1+"), pytest.raises(torch.cuda.OutOfMemoryError):
        on_device(64 * MIB)  # torch tries again, so a single failure would go unnoticed
    on_device(64 * MIB)


def pageable_copies_count() -> None:
    to, pageable = on_device(MIB), torch.empty(MIB, dtype=torch.uint8)
    with fakecuda.counting() as counters:
        to.copy_(pageable, non_blocking=True)
    assert counters["pageable_copies"] == 1
    assert not counters["async_copies"]


def profiler_goes_without() -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with warnings.catch_warnings(), torch.profiler.profile(activities=activities) as profile:
        warnings.simplefilter("ignore")
        torch.arange(3).cuda()
    assert profile.key_averages()


def refusals() -> None:
    for part in (kernels_are_refused, memory_ends, pageable_copies_count, profiler_goes_without):
        part()


def test_refusals_and_counts() -> None:
    fakecuda.call(refusals).check()


def only_the_second_device() -> None:
    torch.cuda.set_device(1)
    torch.arange(100).cuda()
    assert torch._C._cuda_hasPrimaryContext(1)
    assert not torch._C._cuda_hasPrimaryContext(0)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.cuda.current_device()))
    thread.start()
    thread.join()
    assert seen == [0]  # a new thread starts at device 0


def test_a_context_is_made_only_where_it_is_used() -> None:
    fakecuda.call(only_the_second_device, devices=2).check()


def reuse_of_a_freed_block(correct: bool) -> None:
    """torch gives a freed block to its own stream again, though another one still uses it."""
    stream, first, second = torch.cuda.Stream(), pinned(8 * MIB), pinned(8 * MIB)
    block = on_device(8 * MIB)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        block.copy_(first, non_blocking=True)
    if correct:
        block.record_stream(stream)
    del block
    on_device(8 * MIB).copy_(second, non_blocking=True)
    torch.cuda.synchronize()


@pytest.mark.parametrize("correct", [True, False])
def test_a_missing_record_stream_is_a_race(correct: bool) -> None:
    done = fakecuda.call(reuse_of_a_freed_block, correct, race=1).check()
    assert done.counters["races"] == (0 if correct else 1)
