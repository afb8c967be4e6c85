"""The libraries' save_pretrained divides models loaded into CPU memory as it divides others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flashpack
import pytest
import tiny
from flashpack.integrations import diffusers, transformers
from helpers import assert_same, listing
from safetensors.torch import load_file


@pytest.mark.parametrize("eager", [False, True], ids=["mapped", "eager"])
@pytest.mark.parametrize("library", [transformers, diffusers], ids=["transformers", "diffusers"])
def test_shards_of_a_loaded_model(tmp_path: Path, library: Any, eager: bool) -> None:
    model = tiny.bert() if library is transformers else tiny.unet()
    library.save_model(model, tmp_path / "packed")
    loaded = library.load_model(type(model), tmp_path / "packed", eager=eager)
    model.save_pretrained(tmp_path / "expected", max_shard_size="5KB")
    loaded.save_pretrained(tmp_path / "actual", max_shard_size="5KB")
    names = listing(tmp_path / "expected")
    assert listing(tmp_path / "actual") == names
    shards = [name for name in names if name.endswith(".safetensors")]
    assert len(shards) > 1
    for name in shards:
        assert_same(load_file(tmp_path / "actual" / name), load_file(tmp_path / "expected" / name))


def test_shards_of_a_model_whose_tensors_share_storages(tmp_path: Path) -> None:
    """What the documentation says of keep_flash_ref_on_model: FlashPack divides it, diffusers does not."""
    model, path = tiny.unet(), tmp_path / "model.flashpack"
    flashpack.pack_to_file(model, path)
    flashpack.assign_from_file(model, path, keep_flash_ref_on_model=True)
    model.save_pretrained(tmp_path / "whole", max_shard_size="5KB")
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) == 1
    diffusers.save_model(model, tmp_path / "shards", max_shard_size="5KB")
    assert len(list((tmp_path / "shards").glob("*-of-*.flashpack"))) > 1
    assert_same(
        flashpack.load_file(tmp_path / "shards"),
        load_file(tmp_path / "whole" / "diffusion_pytorch_model.safetensors"),
    )
