"""Who reads what of a file that several ranks load: every byte once, by the rank that is to, in windows."""

from __future__ import annotations

from flashpack._ranks.windows import BROADCAST, Image, plan_steps
from flashpack.constants import SHARD_STRATEGY_CONTIGUOUS as CONTIGUOUS
from flashpack.constants import SHARD_STRATEGY_WINDOWS as WINDOWS
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
    edges=st.sets(st.integers(1, 6000), max_size=4),
    gap=st.integers(0, 70),
)
def test_an_image_holds_the_units_that_ranges_touch(
    ranges: list[tuple[int, int]], cut: int, edges: set[int], gap: int
) -> None:
    # The file is whole but for gaps before these edges, and each range lies in one piece of it.
    starts = [0, *sorted(edges)]
    whole = [(start, max(stop - gap, start)) for start, stop in zip(starts, [*starts[1:], 6100], strict=True)]
    inside = [
        (max(start, first), min(start + length, last)) for start, length in ranges for first, last in whole
    ]
    parts = [(start, stop) for start, stop in inside if start < stop]
    image = Image.of(parts, UNIT, whole)
    touched = {
        (piece, position // UNIT)
        for start, stop in parts
        for piece in whole
        if piece[0] <= start < piece[1]
        for position in range(start, stop)
    }
    expected = [
        at
        for (first, last), unit in sorted(touched)
        for at in range(max(unit * UNIT, first), min((unit + 1) * UNIT, last))
    ]
    places = {}
    for place, start, stop in image.pieces(0, image.bytes):
        places.update({start + at: place + at for at in range(stop - start)})
        assert place % UNIT == start % UNIT
    assert list(places.values()) == expected
    assert image.bytes == max(places, default=-1) + 1
    for start, stop in parts:
        assert all(places[image.offset_of(position)] == position for position in range(start, stop))
    both = [*image.pieces(0, cut), *image.pieces(cut, image.bytes)]
    assert [at for place, start, stop in both for at in range(place, place + stop - start)] == expected
