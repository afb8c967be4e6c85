"""Who reads what of a file that several ranks load: every byte once, by the rank that is to, in windows."""

from __future__ import annotations

from flashpack._windows import BROADCAST, CONTIGUOUS, PAGE_BYTES, WINDOWS, Image, plan_steps
from hypothesis import given
from hypothesis import strategies as st

UNIT = 64
MODES = st.sampled_from([BROADCAST, CONTIGUOUS, WINDOWS])


@given(
    total=st.integers(0, 20_000),
    ranks=st.integers(1, 9),
    mode=MODES,
    window_bytes=st.one_of(st.none(), st.integers(1, 4000)),
)
def test_every_byte_is_read_once_by_ranks_that_share_the_work(
    total: int, ranks: int, mode: str, window_bytes: int | None
) -> None:
    src = ranks - 1
    steps = plan_steps(total, ranks, mode, src=src, unit=UNIT, window_bytes=window_bytes)
    windows = sorted((window for step in steps for window in step), key=lambda window: window.start)
    assert [window.start for window in windows] == [0, *(window.stop for window in windows)][: len(windows)]
    assert (windows[-1].stop if windows else 0) == total
    assert all(window.start < window.stop for window in windows)
    assert all(window.start % UNIT == 0 for window in windows)
    if window_bytes is not None:
        assert all(window.stop - window.start < window_bytes + UNIT for window in windows)
    for step in steps:
        owners = [window.owner for window in step]
        assert len(owners) == len(set(owners))
    shares = [sum(w.stop - w.start for w in windows if w.owner == rank) for rank in range(ranks)]
    if mode == BROADCAST:
        assert shares[src] == total
    else:
        largest = max((window.stop - window.start for window in windows), default=0)
        assert max(shares) <= -(-total // ranks) + max(largest, UNIT)


@given(
    ranges=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 900)), max_size=9),
    cut=st.integers(0, 9000),
    payload=st.integers(5900, 6000),
)
def test_an_image_holds_the_units_that_ranges_touch(
    ranges: list[tuple[int, int]], cut: int, payload: int
) -> None:
    parts = [(start, start + length) for start, length in ranges]
    image = Image.of(parts, UNIT, payload)
    touched = {position // UNIT for start, stop in parts for position in range(start, stop)}
    expected = [at for unit in sorted(touched) for at in range(unit * UNIT, min((unit + 1) * UNIT, payload))]
    places = {}
    for place, start, stop in image.pieces(0, image.bytes):
        places.update({start + at: place + at for at in range(stop - start)})
        assert place % PAGE_BYTES == start % PAGE_BYTES
    assert list(places.values()) == expected
    assert image.bytes == max(places, default=-1) + 1
    for start, stop in parts:
        assert all(places[image.offset_of(position)] == position for position in range(start, stop))
    both = [*image.pieces(0, cut), *image.pieces(cut, image.bytes)]
    assert [at for place, start, stop in both for at in range(place, place + stop - start)] == expected
