"""The caller's stream, whichever it is: only its own thread touches it, and no capture is disturbed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import cuda_driver as cuda
import engine
import fakecuda
import flashpack
import pytest
import torch
from engine import BUSY, Net, assert_arrived, loading, saved, untouched
from flashpack._core import ops as _ops
from flashpack._core import progress
from helpers import MIB, assert_same, noise
from test_engine import among_queued_work

pytestmark = pytest.mark.usefixtures("emulator")

PER_THREAD = 2  # the handle that stands for another stream in each thread
LONG_MIB = (progress.INLINE_BYTES >> 20) + 3  # loads that large have a second thread


# --- Streams that mean another one elsewhere. ------------------------------------------------------


def default_streams(folder: str, kind: str) -> None:
    torch.empty(1, device="cuda")
    entered = cuda.green_context() if kind == "green" else nullcontext()
    handle = PER_THREAD if kind == "per-thread" else 0
    with entered, engine.environment(**BUSY):
        on = torch.cuda.ExternalStream(handle)
        want = engine.pieces(12, 0)
        among_queued_work(saved(folder, want), want, "cuda", on)
        long_load(folder, on)
        small = {"a": noise(torch.uint8, (3 * MIB,), 5)}
        old = engine.pinned(noise(torch.uint8, (3 * MIB,), 6))
        with torch.cuda.stream(on):
            there = {"a": torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")}
            there["a"].copy_(old, non_blocking=True)
            on.synchronize()
            with fakecuda.knobs(latency_us=3000):
                there["a"].copy_(engine.pinned(small["a"]), non_blocking=True)
                path = saved(folder, there)
        assert_same(flashpack.load_file(path), small)
    engine.assert_no_conflicts()


def long_load(folder: str, on: torch.cuda.Stream) -> None:
    """One that could run in another thread, between work on the same memory."""
    size = LONG_MIB * MIB
    want, old = noise(torch.uint8, (size,), 1), engine.pinned(noise(torch.uint8, (size,), 2))
    path, after = saved(folder, {"it": want}), torch.empty_like(old).pin_memory()
    with torch.cuda.stream(on):
        place = flashpack.load_file(path, "cuda")["it"].data_ptr()
        on.synchronize()
        with fakecuda.knobs(latency_us=3000):
            before = torch.empty(size, dtype=torch.uint8, device="cuda")
            assert before.data_ptr() == place
            before.copy_(old, non_blocking=True)
            del before
            got = flashpack.load_file(path, "cuda")["it"]
            assert got.data_ptr() == place
            after.copy_(got, non_blocking=True)
            on.synchronize()
    assert torch.equal(after, want)


@pytest.mark.parametrize("kind", ["legacy", "per-thread", "green"])
@pytest.mark.parametrize("mode", ["strict", "lazy:1", "lazy:2"])
def test_default_streams(mode: str, kind: str, tmp_path: Path) -> None:
    fakecuda.call(default_streams, str(tmp_path), kind, mode=mode).check()


def watched(folder: str) -> None:
    """A long load on this thread's own stream shows its progress, and stops when that raises."""
    want = engine.pieces(LONG_MIB, 0)
    path = saved(folder, want)
    torch.empty(1, device="cuda")
    told: list[tuple[int, int]] = []
    with torch.cuda.stream(torch.cuda.ExternalStream(PER_THREAD)):
        got = flashpack.load_file(
            path, "cuda", progress=lambda done, all_of_it: told.append((done, all_of_it))
        )
        torch.cuda.current_stream().synchronize()
        assert told[-1][0] == told[-1][1] >= LONG_MIB * MIB * 0.99
        assert_arrived(got, want, "cuda")

        def stop(done: int, all_of_it: int) -> None:
            if done:
                raise LookupError(f"{done} of {all_of_it}")

        with fakecuda.knobs(bw_h2d=8e6, data=0), pytest.raises(LookupError, match=" of "):
            flashpack.load_file(path, "cuda", progress=stop)
    engine.assert_no_conflicts()


def test_a_load_on_the_threads_own_stream_is_watched(tmp_path: Path) -> None:
    fakecuda.call(watched, str(tmp_path)).check()


# --- Captures. -------------------------------------------------------------------------------------


def captured(folder: str) -> None:
    """What would be captured is refused while nothing has changed, and the capture goes on."""
    model, source = Net().to("cuda"), Net()
    path, elsewhere = saved(folder, source), Path(folder) / "other.flashpack"
    long = saved(folder, {"a": torch.zeros(LONG_MIB * MIB, dtype=torch.uint8)})
    torch.cuda.synchronize()
    on = torch.cuda.Stream()
    attempts: list[Callable[[], object]] = [
        lambda: flashpack.load_file(path, "cuda"),
        lambda: flashpack.load_file(long, "cuda"),
        lambda: flashpack.assign_from_file(model, path),
        lambda: flashpack.assign_from_file(model, path, in_place=True),
        lambda: torch.ops.flashpack.load(str(path), ["scale"], device=torch.device("cuda")),
        lambda: flashpack.save_file({"a": model.scale.detach()}, elsewhere),
    ]
    with untouched(model):
        for mode in (cuda.GLOBAL, cuda.THREAD_LOCAL, cuda.RELAXED):
            for attempt in attempts:
                before = fakecuda.counter("device_allocs"), fakecuda.counter("h2d_copies")
                with torch.cuda.stream(on):
                    cuda.begin_capture(on.cuda_stream, mode)
                    with pytest.raises((ValueError, RuntimeError), match="is being captured into a graph"):
                        attempt()
                    assert cuda.is_capturing(on.cuda_stream) == 1
                    assert cuda.end_capture(on.cuda_stream) == 0
                assert (fakecuda.counter("device_allocs"), fakecuda.counter("h2d_copies")) == before
    assert not elsewhere.exists()
    flashpack.assign_from_file(model, path)
    assert_arrived(model.state_dict(), engine.state_of(source), "cuda")


@pytest.mark.parametrize("mode", ["plain", "lazy:1"])
def test_a_stream_that_is_captured_is_refused(mode: str, tmp_path: Path) -> None:
    done = fakecuda.call(captured, str(tmp_path), mode=mode).check()
    assert not done.counters["captures_invalidated"] + done.counters["captured_operations"]


@contextmanager
def capturing_elsewhere(mode: int) -> Iterator[None]:
    """Another thread captures all through the block, and is not disturbed."""
    begun, over = threading.Event(), threading.Event()
    ends: list[int] = []

    def capture() -> None:
        torch.cuda.set_device(0)
        on = torch.cuda.Stream().cuda_stream
        cuda.begin_capture(on, mode)
        begun.set()
        over.wait()
        ends.append(cuda.end_capture(on))

    thread = threading.Thread(target=capture)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert ends == [0]


def beside_a_capture(folder: str) -> None:
    """Loads and saves pin, allocate, wait and free while another thread captures."""
    want = engine.pieces(12, 0)
    path = saved(folder, want)
    there = {name: tensor.to("cuda") for name, tensor in want.items()}
    torch.cuda.Stream()  # the first makes torch's whole pool of them
    given = {name: torch.empty_like(tensor, device="cuda") for name, tensor in want.items()}
    torch.cuda.synchronize()
    with engine.environment(**BUSY):
        for mode in (cuda.GLOBAL, cuda.THREAD_LOCAL, cuda.RELAXED):
            flashpack.release_pinned_pool()
            with capturing_elsewhere(mode), fakecuda.knobs(latency_us=1000):
                got = flashpack.load_file(path, "cuda")
                model = torch.ops.flashpack.open(str(path))
                torch.ops.flashpack.fill(model, list(given), list(given.values()))
                copy = saved(folder, there)
                flashpack.release_pinned_pool()
                assert cuda.exchange_capture_mode(cuda.GLOBAL) == cuda.GLOBAL  # as it was
            assert_arrived(got, want, "cuda")
            assert_arrived(given, want, "cuda")
            assert_same(flashpack.load_file(copy), want)
    engine.assert_no_conflicts()


@pytest.mark.parametrize("mode", ["strict", "lazy:1"])
def test_captures_of_other_threads_are_not_disturbed(mode: str, tmp_path: Path) -> None:
    done = fakecuda.call(beside_a_capture, str(tmp_path), mode=mode).check()
    assert done.counters["captures"] == 3


# --- What is kept. ---------------------------------------------------------------------------------


def kept_streams(folder: str) -> None:
    """Many readers and many loads share a few copy streams, and events are used again."""
    path = saved(folder, engine.pieces(24, 0))
    torch.empty(1, device="cuda")
    flashpack.release_pinned_pool()
    with engine.environment(**{**BUSY, "FLASHPACK_READ_THREADS": "32"}), fakecuda.counting() as counters:
        for _ in range(5):
            flashpack.load_file(path, "cuda")
    assert 0 < counters["streams_created"] <= engine.COPY_STREAMS
    assert counters["streams_destroyed"] == 0
    buffers = counters["pinned_registers"]
    assert counters["events_created"] <= buffers + engine.COPY_STREAMS + 5
    assert counters["event_records"] > 2 * counters["events_created"]
    with fakecuda.counting() as counters:
        flashpack.release_pinned_pool()
    assert 0 < counters["streams_destroyed"] <= engine.COPY_STREAMS
    engine.assert_no_conflicts()


def test_copy_streams_and_events_are_kept(tmp_path: Path) -> None:
    fakecuda.call(kept_streams, str(tmp_path), mode="strict").check()


def many_tensors(folder: str) -> None:
    want = {f"t{number}": noise(torch.uint8, (1000 + number,), number) for number in range(300)}
    there = {name: tensor.to("cuda") for name, tensor in want.items()}
    mixed = {**there, "on the host": torch.arange(7)}
    torch.cuda.synchronize()
    with loading() as counters:
        path = saved(folder, there)
    waits = (
        counters["host_waits"],
        counters["event_syncs"],
        counters["stream_syncs"],
        counters["device_syncs"],
    )
    assert max(waits) <= 10, waits
    assert_same(flashpack.load_file(path, verify=True), want)
    path = Path(folder) / "mixed.flashpack"
    with loading():
        flashpack.save_file(mixed, path, max_shard_size=50_000)
    assert_same(flashpack.load_file(path, verify=True), {**want, "on the host": torch.arange(7)})


@pytest.mark.parametrize("mode", ["strict", "lazy:1"])
def test_a_save_of_many_tensors_waits_seldom(mode: str, tmp_path: Path) -> None:
    fakecuda.call(many_tensors, str(tmp_path), mode=mode).check()


# --- Failures. -------------------------------------------------------------------------------------


def bad_events(folder: str) -> None:
    """Events that tell nothing any more cost a load, but no buffer stays pinned for good."""
    want = engine.pieces(24, 0)
    path = saved(folder, want)
    torch.empty(1, device="cuda")
    flashpack.release_pinned_pool()
    with engine.environment(**BUSY), fakecuda.knobs(latency_us=1000):
        rules = "cuEventQuery:1+:invalid,cuEventSynchronize:1+:invalid"
        with fakecuda.faults(rules):
            with pytest.raises(RuntimeError, match="CUDA: cuEventQuery failed: invalid argument"):
                flashpack.load_file(path, "cuda")
            flashpack.release_pinned_pool()
            assert fakecuda.counter("pinned_bytes") == _ops.pinned_usage().bytes == 0
        assert_arrived(flashpack.load_file(path, "cuda"), want, "cuda")
    engine.assert_no_conflicts()


@pytest.mark.parametrize("mode", ["strict", "lazy:1"])
def test_events_that_fail_for_good(mode: str, tmp_path: Path) -> None:
    fakecuda.call(bad_events, str(tmp_path), mode=mode).check()


def other_device_lost(folder: str) -> None:
    want = engine.pieces(6, 0)
    path = saved(folder, want)
    torch.empty(1, device="cuda:1")
    with fakecuda.faults("cuMemcpyHtoDAsync:1:illegal"), pytest.raises(RuntimeError, match="illegal"):
        flashpack.load_file(path, "cuda:0")
    torch.cuda.set_device(1)
    assert_arrived(flashpack.load_file(path, "cuda:1"), want, "cuda:1")


def test_a_device_that_is_lost_leaves_others_usable(tmp_path: Path) -> None:
    fakecuda.call(other_device_lost, str(tmp_path), devices=2).check()
