"""Parts of tensors on their way to a device, in every order CUDA allows."""

from __future__ import annotations

from pathlib import Path

import engine
import fakecuda
import flashpack
import pytest
import torch
from engine import assert_arrived, loading, saved
from helpers import noise

pytestmark = pytest.mark.usefixtures("emulator")


def parts(folder: str) -> None:
    want = engine.kinds()
    want["wide"] = noise(torch.bfloat16, (300, 9000), 7)
    path = saved(folder, want)
    some = {name: want[name] for name in ("wide", "large", "float32.5x7", "bool.5x7", "tied")}
    slices = {"wide": (1, 1000, 1700), "large": [(0, 2, 300), (1, 5, 1000)], "float32.5x7": (0, 1, 4)}
    expected = {
        **some,
        "wide": some["wide"][:, 1000:1700].contiguous(),
        "large": some["large"][2:300, 5:1000].contiguous(),
        "float32.5x7": some["float32.5x7"][1:4],
    }
    busy: dict[str, str]
    for busy in ({"FLASHPACK_DIRECT_IO": "1"}, engine.BUSY):
        with engine.environment(**busy), loading():
            got = flashpack.load_file(path, "cuda", names=list(some), slices=slices)
        assert_arrived(got, expected, "cuda")
    with flashpack.open(path, device="cuda") as file, loading():
        got = {"wide": file.get_slice("wide")[:, 1000:1700]}
    assert_arrived(got, {"wide": expected["wide"]}, "cuda")


@pytest.mark.parametrize("mode", fakecuda.MODES)
def test_parts(mode: str, tmp_path: Path) -> None:
    counters = fakecuda.call(parts, str(tmp_path), mode=mode, devices=1).check().counters
    assert not counters["races"] + counters["frees_in_flight"]
