"""What flashpack 0.4.5 does wrong and must not come back: a test or more for each defect."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from click.testing import CliRunner
from flashpack.__main__ import main
from helpers import (
    MIB,
    assert_same,
    bits,
    flip_byte,
    listing,
    noise,
    place_of,
    read_footer,
    read_payload,
    record_of,
    write_file,
)
from processes import python, succeed
from safetensors.torch import save_file
from torch import Tensor, nn


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones included, with its content."""
    return {name: (folder / name).read_bytes() for name in listing(folder)}


# The README's `pack_to_file(model, path)` raises: target_dtype has no default.


def test_packing_needs_no_target_dtype(path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3).half(), nn.BatchNorm1d(3).double())
    flashpack.pack_to_file(model, path)
    assert_same(flashpack.load_file(path), model.state_dict())


# Scalars come back as shape (1,).


def test_scalars_stay_scalars(path: Path) -> None:
    model = nn.BatchNorm1d(3)
    model.scale = nn.Parameter(torch.tensor(0.5))
    flashpack.pack_to_file(model, path)
    assert record_of(path, "scale")["shape"] == []
    for eager in (False, True):
        assert flashpack.load_file(path, eager=eager)["scale"].shape == ()
    other = nn.BatchNorm1d(3)
    other.scale = nn.Parameter(torch.tensor(0.0))
    flashpack.assign_from_file(other, path, strict=True)
    assert (other.scale.shape, other.num_batches_tracked.shape) == ((), ())
    assert other.scale.item() == 0.5


# Non-contiguous, channels_last and conjugate tensors refuse to pack.

WHOLE = noise(torch.float32, (4, 3, 6, 5))
PAIRS = noise(torch.complex64, (5, 4), seed=1)
LAYOUTS = {
    "transposed": WHOLE.transpose(0, 3),
    "strided": WHOLE[::2, :, 1:4, ::3],
    "expanded": WHOLE[:, :1].expand(4, 7, 6, 5),
    "overlapping": WHOLE.flatten().as_strided((5, 6), (2, 1)),
    "channels_last": WHOLE.contiguous(memory_format=torch.channels_last),
    "offset": WHOLE.flatten()[7:],
    "conjugate": PAIRS.conj(),
    "negative": PAIRS.conj().imag,
    "real part": PAIRS.real,
    "conjugate transpose": PAIRS.mH,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strided_tensor_packs(path: Path, layout: str) -> None:
    flashpack.pack_to_file({"a": LAYOUTS[layout]}, path)
    assert_same(flashpack.load_file(path), {"a": LAYOUTS[layout]})


# Tied weights are stored twice and untied on load; a live tied model refuses or half-loads.


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 16)
        self.head = nn.Linear(16, 300)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_stay_tied(path: Path, device: str) -> None:
    source = Tied()
    flashpack.pack_to_file(source, path)
    assert record_of(path, "embed.weight")["offset"] == record_of(path, "head.weight")["offset"]
    assert len(read_payload(path)) < 1.5 * source.embed.weight.nbytes
    with torch.device(device):
        model = Tied()
    flashpack.assign_from_file(model, path, device="cpu")
    assert model.head.weight is model.embed.weight
    assert_same(model.state_dict(), source.state_dict())
    with torch.no_grad():
        model.embed.weight[0] = 7
    assert model.head.weight[0].tolist() == [7] * 16


def test_a_live_tied_model_takes_a_file_with_one_of_the_names(path: Path) -> None:
    source, model = Tied(), Tied()
    state = source.state_dict()
    del state["head.weight"]
    flashpack.pack_to_file(state, path)
    flashpack.assign_from_file(model, path)
    assert model.head.weight is model.embed.weight
    assert_same(model.state_dict(), source.state_dict())


# Wrong shapes are accepted; a failure leaves a half-assigned model.


def identities(model: nn.Module) -> dict[str, tuple[int, int, bytes]]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (id(tensor), tensor.data_ptr(), bits(tensor)) for name, tensor in tensors.items()}


def state_like(model: nn.Module, **changes: Tensor) -> dict[str, Tensor]:
    state = {name: torch.rand(tensor.shape).to(tensor.dtype) for name, tensor in model.state_dict().items()}
    return {**state, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}


MISFITS: dict[str, dict[str, Tensor]] = {
    "transposed": {"0__weight": torch.zeros(4, 3)},
    "flat": {"0__weight": torch.zeros(12)},
    "broadcastable": {"0__bias": torch.zeros(1)},
    "longer": {"0__bias": torch.zeros(4)},
    "another rank": {"0__bias": torch.zeros(3, 1)},
    "a buffer's shape": {"1__running_mean": torch.zeros(1)},
    "a scalar's shape": {"1__num_batches_tracked": torch.zeros(1, dtype=torch.int64)},
    "a buffer's dtype": {"1__running_var": torch.zeros(3, dtype=torch.float64)},
    "an integer parameter": {"0__weight": torch.zeros(3, 4, dtype=torch.int32)},
    "an unknown name": {"2__weight": torch.zeros(3)},
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_misfit_leaves_the_model_untouched(path: Path, misfit: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    flashpack.pack_to_file(state_like(model, **MISFITS[misfit]), path)
    before = identities(model)
    (name,) = MISFITS[misfit]
    with pytest.raises(ValueError, match=re.escape(name.replace("__", "."))):
        flashpack.assign_from_file(model, path)
    assert identities(model) == before


@pytest.mark.parametrize("name", ["0.weight", "1.bias", "1.running_mean"])
def test_a_missing_name_leaves_the_model_untouched(path: Path, name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    state = state_like(model)
    del state[name]
    flashpack.pack_to_file(state, path)
    before = identities(model)
    with pytest.raises(ValueError, match=re.escape(name)):
        flashpack.assign_from_file(model, path, strict=True)
    assert identities(model) == before


def test_a_damaged_payload_leaves_the_model_untouched(path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    flashpack.pack_to_file(state_like(model), path)
    flip_byte(path, place_of(path, "1.bias")[0])
    before = identities(model)
    with pytest.raises(flashpack.ChecksumError, match=re.escape(str(path))):
        flashpack.assign_from_file(model, path, eager=True)
    assert identities(model) == before


# Writing to a CPU-loaded parameter is SIGSEGV.

WRITE_INTO_LOADED = """
import sys
import flashpack
import torch
from flashpack.deserialization import read_flashpack_file

with torch.device(sys.argv[2]):
    model = torch.nn.Linear(512, 512)
flashpack.assign_from_file(model, sys.argv[1], device="cpu", silent=True)
with torch.no_grad():
    model.weight.zero_()
    model.bias += 1
model(torch.ones(2, 512)).sum().backward()
with torch.no_grad():
    for parameter in model.parameters():
        parameter -= 0.5 * parameter.grad
assert model.weight.unique().tolist() == [-1.0]
for tensor in flashpack.load_file(sys.argv[1], eager=False).values():
    tensor.fill_(3)
storage, _ = read_flashpack_file(sys.argv[1])
storage.block(0).zero_()
"""


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loaded_parameters_are_writable(path: Path, device: str) -> None:
    flashpack.pack_to_file(nn.Linear(512, 512), path)
    before = path.read_bytes()
    succeed(python("-c", WRITE_INTO_LOADED, path, device))
    assert path.read_bytes() == before


# Payload damage, overlaps, duplicates and blocks past the end of the file are accepted.


def small_file(path: Path) -> dict[str, Any]:
    flashpack.pack_to_file({"a": torch.ones(8), "b": torch.zeros(4), "c": torch.ones(2).double()}, path)
    footer = read_footer(path)
    del footer["checksums"]
    return footer


def test_the_control_is_sound(path: Path) -> None:
    footer = small_file(path)
    write_file(path, read_payload(path), footer)
    assert flashpack.load_file(path)["a"].tolist() == [1] * 8


def overlap(footer: dict[str, Any]) -> None:
    footer["align_bytes"] = 0
    next(record for record in footer["index"] if record["name"] == "b")["offset"] = 6


def duplicate(footer: dict[str, Any]) -> None:
    next(record for record in footer["index"] if record["name"] == "b")["name"] = "a"


def past_the_end(footer: dict[str, Any]) -> None:
    for block in footer["macroblocks"]:
        block["offset_bytes"] += 1 << 20


def past_its_block(footer: dict[str, Any]) -> None:
    footer["index"][0].update(shape=[1 << 20], length=1 << 20)


def overlapping_blocks(footer: dict[str, Any]) -> None:
    footer["macroblocks"][1]["offset_bytes"] = 0


@pytest.mark.parametrize("damage", [overlap, duplicate, past_the_end, past_its_block, overlapping_blocks])
@pytest.mark.parametrize(
    "reader", [flashpack.load_file, flashpack.verify_file, flashpack.get_flashpack_file_metadata]
)
def test_an_unsound_structure_is_refused(
    path: Path, damage: Callable[[dict[str, Any]], None], reader: Callable[[Path], object]
) -> None:
    footer = small_file(path)
    damage(footer)
    write_file(path, read_payload(path), footer)
    with pytest.raises(flashpack.FlashPackError, match=re.escape(str(path))):
        reader(path)


@pytest.mark.parametrize(
    "reader",
    [
        lambda path: flashpack.load_file(path, eager=True),
        lambda path: flashpack.load_file(path, eager=False, verify=True),
        flashpack.verify_file,
    ],
    ids=["eager", "verify", "verify_file"],
)
def test_a_damaged_payload_is_refused(path: Path, reader: Callable[[Path], object]) -> None:
    flashpack.pack_to_file({"a": noise(torch.float16, (MIB,))}, path)
    reader(path)
    flip_byte(path, MIB + 12345)
    with pytest.raises(flashpack.ChecksumError, match=r"chunk 1 .*'?a"):
        reader(path)


def test_a_destination_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        flashpack.pack_to_file({"a": torch.ones(3)}, tmp_path)
    assert caught.value.filename == str(tmp_path)
    assert listing(tmp_path) == set()


# `convert x.bin` without a destination overwrites its source; `revert` on an odd suffix destroys it.


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.odd", "x"])
def test_convert_without_a_destination_keeps_its_source(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    torch.save({"a": torch.ones(3)}, source)
    before = source.read_bytes()
    result = CliRunner().invoke(main, ["convert", str(source)])
    assert result.exit_code == 0, result.output
    assert source.read_bytes() == before
    (made,) = listing(tmp_path) - {name}
    assert made.endswith(".flashpack")
    assert flashpack.load_file(tmp_path / made)["a"].tolist() == [1] * 3


@pytest.mark.parametrize("name", ["model.odd", "model", "flashpack.bin", "model.safetensors"])
def test_revert_without_a_destination_keeps_its_source(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    flashpack.save_file({"a": torch.ones(3)}, source)
    before = source.read_bytes()
    result = CliRunner().invoke(main, ["revert", str(source)])
    assert result.exit_code == 0, result.output
    assert source.read_bytes() == before
    (made,) = listing(tmp_path) - {name}
    assert made == f"{name}.safetensors"


# `convert` of a transformers folder always fails; `--ignore-*` is ignored for folders.


# With --use-transformers and --use-diffusers: integrations/test_convert_folders.py.
def test_a_model_folder_converts_with_its_options(tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    given = {"encoder.weight": noise(torch.float32, (4, 3)), "pooler.weight": torch.ones(3)}
    save_file(given, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "bert", "architectures": ["BertModel"], "transformers_version": "5.0.0"}
    (folder / "config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(main, ["convert", str(folder), str(path), "--ignore-prefixes", "pooler."])
    assert result.exit_code == 0, result.output
    assert_same(flashpack.load_file(path), {"encoder.weight": given["encoder.weight"]})


# The command line does not import under diffusers 0.41, and takes 6 to 8 s to start.


def test_the_command_line_starts_without_the_libraries_it_may_need() -> None:
    code = "import sys; from flashpack.__main__ import main; print(*sys.modules)"
    modules = set(succeed(python("-c", code)).split())
    assert "flashpack.cli" in modules
    assert not modules & {"torch", "transformers", "diffusers", "accelerate", "huggingface_hub", "numpy"}


BROKEN = """
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "diffusers", "accelerate", "huggingface_hub"):
            raise RuntimeError(f"{name} is of an unsuitable release")

sys.meta_path.insert(0, Broken())
from flashpack.__main__ import main
main(sys.argv[1:])
"""


def test_unsuitable_releases_of_other_libraries_do_no_harm(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "x.bin")
    assert succeed(python("-c", BROKEN, "convert", tmp_path / "x.bin")).startswith("Success")
    assert succeed(python("-c", BROKEN, "revert", tmp_path / "x.flashpack")).startswith("Success")


# Integer buffers are cast by target_dtype: 2301 becomes 2300 in float16.


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_only_floating_tensors_are_cast(path: Path, target: torch.dtype) -> None:
    kept = {
        "steps": torch.tensor(2301),
        "ids": torch.arange(250, 280),
        "bytes": noise(torch.uint8, (9,)),
        "mask": torch.tensor([True, False]),
        "complex": noise(torch.complex64, (3,)),
    }
    flashpack.pack_to_file({"weight": torch.tensor([0.1, -3.0]), **kept}, path, target)
    loaded = flashpack.load_file(path)
    assert bits(loaded.pop("weight")) == bits(torch.tensor([0.1, -3.0]).to(target))
    assert_same(loaded, kept)


def test_integer_buffers_under_a_target_dtype_reach_the_model(path: Path) -> None:
    model = nn.BatchNorm1d(3)
    model.num_batches_tracked += 2301
    flashpack.pack_to_file(model, path, torch.float16)
    other = nn.BatchNorm1d(3)
    flashpack.assign_from_file(other, path, coerce_dtype=True, strict=True)
    assert other.num_batches_tracked.item() == 2301
    assert (other.weight.dtype, other.running_mean.dtype) == (torch.float16, torch.float32)
