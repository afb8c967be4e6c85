"""Parts of models: no more bytes than are needed, and what is bridged between them."""

from __future__ import annotations

from pathlib import Path

import flashpack
import pytest
import torch
from faultstore import Store, sent
from flashpack._convert.convert import convert_to_flashpack
from flashpack._convert.revert import revert_from_flashpack
from helpers import MIB, assert_same, bits, noise
from patience import within
from remote_model import SAFETENSORS, SHARDS, URL, tensors
from safetensors.torch import load_file

OPENING = 64 << 10  # bytes that come with the footer or the header
DIGESTED = MIB  # a digest is of so many bytes


def test_a_name_costs_its_bytes(model: Store) -> None:
    for url, granule in ((URL, DIGESTED), (SAFETENSORS, 4096), (SHARDS, DIGESTED)):
        for names in (["t1"], ["t0", "t2"]):
            model.take()
            got = within(lambda url=url, names=names: flashpack.load_file(url, names=names))
            assert_same(got, {name: tensors()[name] for name in names})
            needed = sum(tensors()[name].nbytes for name in names)
            files = 3 if url == SHARDS else 1
            assert needed <= sent(model.take()) <= needed + len(names) * 2 * granule + files * OPENING


def test_a_slice_costs_its_bytes(model: Store) -> None:
    got = within(lambda: flashpack.load_file(SAFETENSORS, slices={"t2": (0, 3 * MIB, 4 * MIB)}, names=["t2"]))
    assert bits(got["t2"]) == bits(tensors()["t2"][3 * MIB : 4 * MIB])
    assert sent(model.take()) <= MIB + 2 * 4096 + OPENING


@pytest.fixture
def rows(s3: Store) -> torch.Tensor:
    """A tensor whose columns are many runs of bytes, in the store."""
    (s3.folder / "bucket").mkdir()
    tensor = noise(torch.uint8, (256, 64 << 10), 7)
    flashpack.save_file({"rows": tensor}, s3.folder / "bucket/rows.flashpack")
    return tensor


def test_columns_cost_their_bytes_and_the_gaps_that_are_cheaper_than_requests(
    s3: Store, rows: torch.Tensor
) -> None:
    url = "s3://bucket/rows.flashpack"
    got = within(lambda: flashpack.load_file(url, slices={"rows": (1, 0, 8 << 10)}, verify=False))
    assert bits(got["rows"]) == bits(rows[:, : 8 << 10].contiguous())
    requests = s3.take()
    assert sent(requests) <= rows.nbytes + OPENING
    assert len(requests) <= 16  # not one for each of the 256 runs


def test_a_revert_reads_what_it_verifies_once(model: Store, tmp_path: Path) -> None:
    """What came a second time could be damaged, and safetensors has no digest that would tell."""
    within(lambda: revert_from_flashpack(URL, tmp_path / "model.safetensors"))
    size = sum(tensor.nbytes for tensor in tensors().values())
    assert size <= sent(model.take()) <= size + 2 * OPENING
    assert_same(load_file(tmp_path / "model.safetensors"), tensors())


def test_metadata_costs_the_footer(model: Store) -> None:
    with flashpack.open(URL) as file:
        assert set(file.keys()) == set(tensors())
    requests = model.take()
    assert len(requests) <= 2
    assert sent(requests) <= 2 * OPENING


def test_what_is_included_costs_its_bytes(model: Store) -> None:
    got = within(lambda: flashpack.load_file(URL, include=["t[02]"]))
    assert_same(got, {name: tensors()[name] for name in ("t0", "t2")})
    needed = sum(tensor.nbytes for tensor in got.values())
    assert needed <= sent(model.take()) <= needed + 4 * DIGESTED + OPENING

    into = torch.nn.Module()
    into.register_buffer("t1", torch.zeros_like(tensors()["t1"]))
    within(lambda: flashpack.assign_from_file(into, URL, include=["t1"]))
    assert bits(into.t1) == bits(tensors()["t1"])
    assert sent(model.take()) <= into.t1.nbytes + 2 * DIGESTED + OPENING


def test_compressed_weights_cost_their_stored_bytes(s3: Store) -> None:
    (s3.folder / "bucket").mkdir()
    path, url = s3.folder / "bucket/small.flashpack", "s3://bucket/small.flashpack"
    weights = {name: (torch.randn(3 << 20) / 50).bfloat16() for name in ("a", "b")}
    flashpack.save_file(weights, path, compress="fast")
    stored = path.stat().st_size
    assert stored < 9 * MIB
    assert_same(within(lambda: flashpack.load_file(url)), weights)
    requests = s3.take()
    assert sent(requests) <= stored + OPENING
    assert len(requests) <= 4  # several chunks each
    got = within(lambda: flashpack.load_file(url, slices={"b": (0, 5, 9)}, names=["b"]))
    assert bits(got["b"]) == bits(weights["b"][5:9])
    assert sent(s3.take()) <= MIB + OPENING
    made = "s3://bucket/again.flashpack"
    within(lambda: convert_to_flashpack(url, made))
    plain = s3.folder / "bucket/plain.flashpack"
    flashpack.save_file(weights, plain)
    assert (s3.folder / "bucket/again.flashpack").read_bytes() == plain.read_bytes()
