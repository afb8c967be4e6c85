"""Emulated time: copies take what the bandwidth says, overlap as on a GPU, and cost the host nothing.

The machine that runs the tests may be busy, so the host's clock says only that nothing is early. That nothing
is late is for the emulator's own clock to say: what its engines count, and what lies between two events.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import cuda_driver as cuda
import fakecuda
import pytest
from cuda_driver import MIB

pytestmark = pytest.mark.usefixtures("emulator")


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def assert_not_early(seconds: float, expected: float) -> None:
    assert seconds >= expected * 0.9999, (seconds, expected)


def assert_takes(first: int, last: int, expected: float, enqueueing: float) -> None:
    """Between two events lies the expected time, and at most what the host took to enqueue the work."""
    between = cuda.elapsed(first, last) / 1e3
    assert expected * 0.9999 <= between <= expected * 1.0001 + enqueueing, (between, expected, enqueueing)


def bandwidth() -> None:
    cuda.use()
    on, to, source, n = cuda.stream(), cuda.alloc(64 * MIB), cuda.Pinned(64 * MIB), 64 * MIB
    for rate in (1e9, 0.25e9):
        with fakecuda.knobs(bw_h2d=rate), fakecuda.counting() as counters:
            wall = seconds_of(lambda: (cuda.to_device(to, source.at, n, on), cuda.synchronize(on)))
        assert_not_early(wall, n / rate)
        assert counters["h2d_busy_us"] == pytest.approx(n / rate * 1e6, rel=0.01)


@pytest.mark.parametrize("data", [0, 1])
def test_a_copy_takes_the_time_of_its_bandwidth(data: int) -> None:
    fakecuda.call(bandwidth, data=data, arena="128Mi", pin_arena="128Mi").check()


def no_host_cpu() -> None:
    cuda.use()
    on, to, source, n = cuda.stream(), cuda.alloc(256 * MIB), cuda.Pinned(256 * MIB), 256 * MIB
    source.fill(7)
    with fakecuda.counting() as counters:
        before = time.process_time()
        wall = seconds_of(lambda: (cuda.to_device(to, source.at, n, on), cuda.synchronize(on)))
        used = time.process_time() - before
    assert_not_early(wall, n / 0.5e9)
    assert used < 0.05 * wall, (used, wall)
    assert counters["h2d_busy_us"] == pytest.approx(n / 0.5e9 * 1e6, rel=0.01)
    assert counters["async_copies"] == 1
    cuda.to_device(to, source.at, 16, on)  # small copies do move
    assert cuda.read(to, 16) == b"\7" * 16


def test_time_without_data_costs_no_cpu() -> None:
    fakecuda.call(no_host_cpu, data=0, bw_h2d="0.5g").check()


def stream_threads() -> list[str]:
    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if name.startswith("fkstream")]


def by_the_clock() -> None:
    """Copies up, and one down that waits for them; then with work in between that has to be done."""
    cuda.use()
    up, down, n, rate = cuda.stream(), cuda.stream(), MIB, 10e6
    to, source, back = cuda.alloc(2 * n), cuda.Pinned(2 * n), cuda.Pinned(n)
    began, arrived, returned = cuda.event(), cuda.event(), cuda.event()

    def enqueue_there_and_back() -> None:
        cuda.record(began, up)
        cuda.to_device(to, source.at, n, up)
        cuda.record(arrived, up)
        cuda.wait(down, arrived)
        cuda.to_host(back.at, to, n, down)
        cuda.record(returned, down)

    def there_and_back() -> None:
        enqueueing = seconds_of(enqueue_there_and_back)
        cuda.do("cuEventSynchronize", returned)
        assert cuda.is_done(arrived)
        for first, last in ((began, arrived), (arrived, returned)):
            assert_takes(first, last, n / rate, enqueueing)

    def up_with_work() -> None:
        cuda.to_device(to, source.at, n, up)
        cuda.do("cuMemsetD8Async", to, 7, 16, up)  # as soon as it may, which is after the copy
        cuda.record(arrived, up)
        cuda.to_device(to + n, source.at, n, up)
        cuda.record(returned, up)

    assert_not_early(seconds_of(there_and_back), 2 * n / rate)
    assert not stream_threads()
    started = time.perf_counter()
    up_with_work()
    for event, copies in ((arrived, 1), (returned, 2)):
        cuda.do("cuEventSynchronize", event)
        assert_not_early(time.perf_counter() - started, copies * n / rate)
    assert len(stream_threads()) == 1
    assert cuda.read(to, 16) == b"\7" * 16
    assert_not_early(seconds_of(there_and_back), 2 * n / rate)


def test_copies_that_only_take_time_need_no_thread() -> None:
    fakecuda.call(by_the_clock, data=0, bw_h2d="10m", bw_d2h="10m").check()


def engines() -> None:
    cuda.use()
    n, rate = 16 * MIB, 0.2e9
    streams = [cuda.stream() for _ in range(4)]
    to, source, back = cuda.alloc(4 * n), cuda.Pinned(4 * n), cuda.Pinned(4 * n)

    first, up_last, down_last = cuda.event(), cuda.event(), cuda.event()

    def up() -> None:
        cuda.record(first, streams[0])
        for i, on in enumerate(streams):
            cuda.to_device(to + i * n, source.at + i * n, n, on)
        cuda.record(up_last, streams[-1])

    def down() -> None:
        on = cuda.stream()
        cuda.to_host(back.at, to, 4 * n, on)
        cuda.record(down_last, on)

    with fakecuda.knobs(bw_h2d=rate, bw_d2h=rate):
        enqueueing = seconds_of(lambda: (up(), down()))
        cuda.synchronize_all()
    for last in (up_last, down_last):
        assert_takes(first, last, 4 * n / rate, enqueueing)


def test_one_direction_queues_up_and_two_overlap() -> None:
    fakecuda.call(engines, data=0).check()


def pipeline() -> None:
    """Reading (a sleep) and copying overlap if there are two buffers, and not if there is one."""
    cuda.use()
    n, chunks, rate, reading = 8 * MIB, 16, 0.4e9, 0.02
    to, on = cuda.alloc(n * chunks), cuda.stream()

    def reads_beside_a_copy(depth: int) -> int:
        buffers, copied = [cuda.Pinned(n) for _ in range(depth)], [cuda.event() for _ in range(depth)]
        beside = 0
        for chunk in range(chunks):
            slot = chunk % depth
            cuda.do("cuEventSynchronize", copied[slot])
            beside += not all(cuda.is_done(event) for event in copied)
            time.sleep(reading)
            cuda.to_device(to + chunk * n, buffers[slot].at, n, on)
            cuda.record(copied[slot], on)
        cuda.synchronize(on)
        return beside

    with fakecuda.knobs(bw_h2d=rate):
        assert reads_beside_a_copy(1) == 0
        assert reads_beside_a_copy(2) > 0


def test_overlap_of_reading_and_copying() -> None:
    fakecuda.call(pipeline, data=0, pin_arena="64Mi").check()


def pinning() -> None:
    cuda.use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert_not_early(seconds_of(lambda: cuda.Pinned(128 * MIB).fill(1)), 0.25)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 500
    assert fakecuda.counter("pin_us") >= 250_000


def test_pinning_costs_what_it_is_told_to() -> None:
    fakecuda.call(pinning, pin_cost=2, pin_arena="256Mi").check()


def faulted_in() -> None:
    cuda.use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    to = cuda.alloc(64 * MIB)
    cuda.do("cuMemsetD8_v2", to, 1, 64 * MIB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 500


def test_an_arena_has_no_page_faults() -> None:
    fakecuda.call(faulted_in, arena="64Mi").check()
