"""Progress bars tell the truth."""

from __future__ import annotations

import re
import threading
import time

import pytest
from flashpack._core import progress
from flashpack._core.native import Counter, new_counter


def counted(done: int, total: int) -> Counter:
    counter = new_counter()
    counter[0], counter[1] = done, total
    return counter


def test_the_first_rate_is_that_of_all_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress._Bar("Loading", time.monotonic() - 100)
    bar.update(counted(3_000_000_000, 8_000_000_000))
    bar.close(counted(8_000_000_000, 8_000_000_000))
    rates = re.findall(r"([\d.]+)(\w?)B/s", capsys.readouterr().err)
    assert rates
    assert all(unit == "M" and float(rate) < 100 for rate, unit in rates)


def test_units_are_powers_of_ten(capsys: pytest.CaptureFixture[str]) -> None:
    progress._Bar("Loading", time.monotonic()).close(counted(1_500_000_000, 1_500_000_000))
    assert "1.50G/1.50G" in capsys.readouterr().err


def test_a_second_part_has_its_own_rate(capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress._Bar("Reverting", time.monotonic() - 1e6)
    bar.update(counted(5_000_000, 8_000_000))
    capsys.readouterr()
    bar.update(counted(4_000_000, 8_000_000))
    bar.close(counted(4_000_000, 8_000_000))
    assert not re.search(r"\d:\d\d:\d\d", capsys.readouterr().err), "hours that the second part has not taken"


@pytest.mark.parametrize(("label", "told"), [("Packing", True), ("Loading", False)])
def test_flushing_is_told(
    label: str, told: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0)
    shown = threading.Event()
    update = progress._Bar.update

    def updated(bar: progress._Bar, counter: Counter) -> None:
        update(bar, counter)
        if counter[0]:
            shown.set()

    monkeypatch.setattr(progress._Bar, "update", updated)

    def work(counter: Counter | None) -> bool:
        assert counter is not None
        counter[1] = counter[0] = 10
        return shown.wait(60)

    assert progress.run(work, label=label, size=1 << 40, silent=False)
    assert ("waiting for the disk" in capsys.readouterr().err) is told
