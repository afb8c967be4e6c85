"""A store that fails at each request in turn: the right bytes or one clear error, few tries, and an end."""

from __future__ import annotations

from typing import Any

import flashpack
import pytest
from faultstore import SECRET, Store
from helpers import assert_same
from patience import within
from remote_model import LOADS, SAFETENSORS, SHARDS, TORCH_SHARDS, URL, load, tensors

Fault = dict[str, Any]
MOST_TRIES = 8  # of a request, in a row that brings nothing

# What one repetition mends.
PASSING: dict[str, Fault] = {
    "reset": {"kind": "reset"},
    "500": {"kind": "status", "status": 500},
    "502": {"kind": "status", "status": 502},
    "503": {"kind": "status", "status": 503, "retry_after": 0},
    "429": {"kind": "status", "status": 429},
    "cut at once": {"kind": "cut"},
    "cut": {"kind": "cut", "after": 40_000},
    "short": {"kind": "short"},
}
# What lasts and is no use to try again, and what is said of it.
REFUSALS: dict[str, tuple[Fault, str]] = {
    "403": ({"kind": "expire"}, "ExpiredToken"),
    "404": ({"kind": "status", "status": 404}, "no such object"),
    "412": ({"kind": "status", "status": 412}, "was changed"),
    "400": ({"kind": "status", "status": 400}, "400"),
}
# The same for what is worth some tries, and which request it begins with, from the end.
FAILURES: dict[str, tuple[Fault, str, int]] = {
    "reset": ({"kind": "reset"}, "broke off the answer", 0),
    "503": ({"kind": "status", "status": 503, "retry_after": 0}, "503", 1),
    "cut at once": ({"kind": "cut"}, "broke off the answer", 1),
}


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize("url", [URL, SAFETENSORS, SHARDS, TORCH_SHARDS])
def test_loads_give_the_right_bytes(model: Store, url: str, kind: str) -> None:
    assert_same(within(lambda: LOADS[kind](url)), tensors())
    requests = model.take()
    assert {request.authorization for request in requests} == {"AWS4-HMAC-SHA256"}
    assert sum(request.sent for request in requests) <= sum(t.nbytes for t in tensors().values()) * 1.02


@pytest.mark.parametrize(
    ("url", "kind"), [*((URL, kind) for kind in PASSING), (SAFETENSORS, "503"), (SAFETENSORS, "cut")]
)
def test_a_fault_at_each_request_is_mended_by_another(model: Store, url: str, kind: str) -> None:
    count = len(load(model, url))
    assert count >= 3
    for number in range(1, count + 1):
        assert len(load(model, url, {**PASSING[kind], "first": number})) <= count + 1, number


def test_damaged_bytes_are_fetched_once_more(model: Store) -> None:
    count = len(load(model, URL))
    for number in range(1, count + 1):
        assert len(load(model, URL, {"kind": "flip", "first": number})) <= count + 2, number


def test_bytes_that_stay_damaged_are_an_error(model: Store) -> None:
    count = len(load(model, URL))
    model.plan({"kind": "flip", "at": 1_000_000, "times": 0})
    with pytest.raises(flashpack.ChecksumError) as told:
        within(lambda: flashpack.load_file(URL))
    assert URL in str(told.value)
    assert len(model.take()) <= count + 2


def failure() -> str:
    """The error of a load, which is one sentence that names the URL and holds no secret."""
    with pytest.raises(OSError) as told:
        within(lambda: flashpack.load_file(URL))
    message = str(told.value)
    assert URL in message
    assert SECRET not in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_at_each_request_is_an_error_at_once(model: Store, kind: str) -> None:
    count = len(load(model, URL))
    fault, said = REFUSALS[kind]
    for number in range(1, count + 1):
        model.plan({**fault, "first": number, "times": 0})
        assert said in failure()
        assert len(model.take()) <= count
    load(model, URL)  # and nothing of it is left


@pytest.mark.parametrize("kind", FAILURES)
def test_a_fault_that_lasts_is_an_error_after_some_tries(model: Store, kind: str) -> None:
    count = len(load(model, URL))
    fault, said, back = FAILURES[kind]
    first = count - back if back else 1
    model.plan({**fault, "first": first, "times": 0})
    message = failure()
    assert said in message
    assert f"{MOST_TRIES} tries" in message
    assert first - 1 + MOST_TRIES <= len(model.take()) <= count * MOST_TRIES
    load(model, URL)


def test_a_few_faults_in_a_row_are_survived(model: Store) -> None:
    load(model, URL, {"kind": "reset", "times": 4}, {"kind": "status", "first": 6, "times": 2})


def test_many_faults_that_come_with_progress_are_survived(model: Store) -> None:
    requests = load(model, URL, {"kind": "cut", "after": 1_500_000, "times": 0})
    assert len(requests) > 15


@pytest.mark.slow  # a server may be silent for 30 seconds before it is asked again
@pytest.mark.parametrize("fault", [{"kind": "silence"}, {"kind": "stall", "after": 40_000}])
def test_a_server_that_stalls_is_asked_again(model: Store, fault: Fault) -> None:
    count = len(load(model, URL))
    for number in (1, count):
        model.plan({**fault, "first": number})
        assert_same(within(lambda: flashpack.load_file(URL), 120), tensors())
        assert len(model.take()) == count + 1
