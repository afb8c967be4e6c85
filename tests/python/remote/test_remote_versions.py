"""One load is one version of an object, even if rights end meanwhile, or the server tells little."""

from __future__ import annotations

import flashpack
import pytest
from faultstore import Store
from helpers import MIB, assert_same
from patience import within
from remote_model import SAFETENSORS, URL, by_handle, load, tensors


@pytest.mark.parametrize("url", [URL, SAFETENSORS])
def test_an_object_that_changes_while_it_is_read_is_an_error(model: Store, url: str) -> None:
    count = len(load(model, url))
    for number in range(2, count + 1):
        model.plan({"kind": "change", "first": number, "times": 0})
        with pytest.raises(OSError, match="was changed") as told:
            within(lambda: flashpack.load_file(url))
        assert url in str(told.value)
        assert len(model.take()) <= count
    model.plan({"kind": "change", "times": 0})
    got = within(lambda: flashpack.load_file(url))
    assert_same(got, {name: tensor.flip(0) for name, tensor in tensors().items()})


@pytest.mark.parametrize("url", [URL, SAFETENSORS])
def test_another_weak_tag_is_another_version(model: Store, url: str) -> None:
    count = len(load(model, url, {"kind": "weak", "times": 0}))
    for number in range(2, count + 1):
        model.plan({"kind": "weak", "times": 0}, {"kind": "change", "first": number, "times": 0})
        with pytest.raises(OSError, match="was changed"):
            within(lambda: flashpack.load_file(url, verify=False))


def test_a_handle_stays_with_its_version(model: Store) -> None:
    with flashpack.open(URL) as file:
        model.plan({"kind": "change", "times": 0})
        with pytest.raises(OSError, match="was changed"):
            within(lambda: file.get_tensor("t1"))
    with flashpack.open(URL) as file:
        assert_same({"t1": within(lambda: file.get_tensor("t1"))}, {"t1": tensors()["t1"].flip(0)})


def test_a_change_that_the_server_does_not_tell_is_found_by_the_digests(model: Store) -> None:
    count = len(load(model, URL, {"kind": "untagged", "times": 0}))
    for number in range(2, count + 1):
        model.plan({"kind": "untagged", "times": 0}, {"kind": "change", "first": number, "times": 0})
        with pytest.raises((OSError, flashpack.ChecksumError)):
            within(lambda: flashpack.load_file(URL))


def test_a_server_without_ranges_is_read_from_start_to_end(model: Store) -> None:
    requests = load(model, URL, {"kind": "whole", "times": 0})
    assert len(requests) <= 2
    load(model, SAFETENSORS, {"kind": "whole", "times": 0})


@pytest.mark.parametrize("url", [URL, SAFETENSORS])
def test_a_whole_object_is_asked_for_again_as_a_whole(model: Store, url: str) -> None:
    """Though the server gives ranges by then."""
    load(model, url, {"kind": "whole"}, {"kind": "cut", "after": MIB})


def test_ranges_that_are_answered_with_200_are_ranges(model: Store) -> None:
    count = len(load(model, URL))
    assert len(load(model, URL, {"kind": "ok", "times": 0})) == count


def test_a_range_that_is_ignored_once_is_asked_for_again(model: Store) -> None:
    count = len(load(model, URL))
    for number in range(2, count + 1):
        load(model, URL, {"kind": "whole", "first": number})


def test_a_signed_address_that_expires_is_renewed(model: Store) -> None:
    url = model.url("bucket/folder/model.flashpack")
    count = len(load(model, url, {"kind": "redirect", "times": 0}))
    for number in range(2, count + 1):
        for kind in (flashpack.load_file, by_handle):
            model.plan({"kind": "redirect", "times": 0, "expires": number})
            assert_same(within(lambda kind=kind: kind(url)), tensors())
            assert 403 in {request.status for request in model.take()}


def test_a_signed_address_serves_many_ranges(model: Store) -> None:
    url = model.url("bucket/folder/model.flashpack")
    count = len(load(model, url))
    requests = load(model, url, {"kind": "redirect", "times": 0, "expires": 0})
    assert len(requests) <= count + 2


def test_secrets_of_a_signed_address_are_in_no_message(model: Store) -> None:
    url = model.url("bucket/folder/model.flashpack")
    model.plan({"kind": "redirect", "times": 0}, {"kind": "expire", "times": 0, "first": 2})
    with pytest.raises(OSError, match="refuses access") as told:
        within(lambda: flashpack.load_file(f"{url}?token=secret-of-the-url"))
    assert "secret" not in str(told.value)
    assert url in str(told.value)
