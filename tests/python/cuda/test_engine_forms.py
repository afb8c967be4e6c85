"""safetensors as they are, and several files as one, on a device."""

from __future__ import annotations

from pathlib import Path

import engine
import fakecuda
import flashpack
import pytest
import torch
from engine import Net, assert_arrived, loading, state_of
from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file
from helpers import MIB, SAFETENSORS_DTYPES, bits, dtype_id, header_only, noise
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.usefixtures("emulator")


def odd_safetensors() -> tuple[bytes, dict[str, Tensor]]:
    """A file whose tensors follow each other at odd places, and what it holds."""
    want = {}
    for number, dtype in enumerate([torch.uint8, torch.float64, torch.int16, torch.float32] * 3):
        want[f"t{number}"] = noise(dtype, (number * 1001 + 3,), number)
    names = {torch.uint8: "U8", torch.float64: "F64", torch.int16: "I16", torch.float32: "F32"}
    header, payload = {}, b""
    for name, tensor in want.items():
        offsets = [len(payload), len(payload) + tensor.nbytes]
        header[name] = {"dtype": names[tensor.dtype], "shape": [*tensor.shape], "data_offsets": offsets}
        payload += bits(tensor)
    return header_only(header, payload), want


def forms(folder: str) -> None:
    place = Path(folder)
    plain = {dtype_id(dtype): noise(dtype, (7, 6), seed) for seed, dtype in enumerate(SAFETENSORS_DTYPES)}
    plain["large"] = noise(torch.bfloat16, (MIB + 5,), 99)
    save_file(plain, place / "plain.safetensors")
    content, odd = odd_safetensors()
    (place / "odd.safetensors").write_bytes(content)
    flashpack.save_file(engine.kinds(), place / "set.flashpack", max_shard_size="100KB")
    cases = {"plain.safetensors": plain, "odd.safetensors": odd, "set.flashpack": engine.kinds()}
    for direct in ("0", "1"):
        for name, want in cases.items():
            with engine.environment(FLASHPACK_DIRECT_IO=direct, **engine.BUSY):
                with loading():
                    got = flashpack.load_file(place / name, "cuda")
                assert_arrived(got, want, "cuda")
                some = [*want][1::3]
                with loading():
                    got = flashpack.load_file(place / name, "cuda", names=some)
                assert_arrived(got, {each: want[each] for each in some}, "cuda")
                with loading():
                    storage, footer = read_flashpack_file(place / name, device="cuda")
                assert_arrived(dict(iterate_from_flash_tensor(storage, footer)), want, "cuda")
    for tensor in flashpack.load_file(place / "odd.safetensors", "cuda").values():
        assert tensor.data_ptr() % 16 == 0
    into_models(place)


def into_models(place: Path) -> None:
    first, second = Net(), Net()
    flashpack.pack_to_file(first, place / "first.flashpack", max_shard_size="100KB")
    state = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    save_file(state, place / "second.safetensors")
    assert not (place / "first.flashpack").exists()
    model = Net().to("cuda")
    for options in ({}, {"in_place": True}):
        for name, wanted in (("first.flashpack", first), ("second.safetensors", second)):
            with loading():
                flashpack.assign_from_file(model, place / name, **options)
            torch.cuda.synchronize()
            engine.assert_same(state_of(model), state_of(wanted))


@pytest.mark.parametrize("mode", ["strict", "lazy:1"])
def test_other_forms(tmp_path: Path, mode: str) -> None:
    fakecuda.call(forms, str(tmp_path), mode=mode).check()
