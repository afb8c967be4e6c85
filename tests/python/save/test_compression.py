"""Compressed files: the same tensors by every way in, made and unmade by every way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flashpack
import flashpack.numpy
import pytest
import torch
from command_line import assert_success, run
from flashpack._convert.convert import convert_to_flashpack
from flashpack._load import load
from flashpack._load.load import run_load
from flashpack._module import in_place
from flashpack.integrations._saving import SaveOptions
from helpers import DTYPES, FIXTURES, assert_same, dtype_id, flip_byte, noise, read_footer
from safetensors.torch import save_file as save_safetensors
from torch import Tensor, nn

LEVELS = ["fast", "small"]
ARRANGEMENTS = pytest.mark.parametrize("shard_bytes", [None, 1_000_000], ids=["file", "shards"])


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / 50

    return {
        "layer.weight": normal(640, 1000).to(torch.bfloat16),
        "layer.bias": normal(1000),
        "steps": torch.arange(3000),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture(params=LEVELS)
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.flashpack"
    flashpack.pack_to_file(weights(), path, compress=request.param)
    return path


def storage(path: Path) -> tuple[str, set[str]]:
    footer = read_footer(path)
    return footer["format"], {run["codec"] for run in footer.get("encoding", {"frames": []})["frames"]}


def test_every_load_gives_the_tensors(packed: Path) -> None:
    expected = weights()
    codec = "fixed16" if packed.stem == "fast" else "zstd16"
    assert storage(packed)[0] == "flashpack_v5" and codec in storage(packed)[1]
    assert packed.stat().st_size < 0.8 * sum(tensor.nbytes for tensor in expected.values())
    for eager in (None, False, True):
        assert_same(flashpack.load_file(packed, eager=eager), expected)
    assert_same(flashpack.load_file(packed, verify=True), expected)
    with flashpack.open(packed) as file:
        assert_same({name: file.get_tensor(name) for name in file}, expected)
        assert torch.equal(file.get_slice("layer.weight")[5:7, 3:9], expected["layer.weight"][5:7, 3:9])
    part = flashpack.load_file(packed, slices={"layer.weight": (0, 100, 300)}, names=["layer.weight"])
    assert torch.equal(part["layer.weight"], expected["layer.weight"][100:300])
    arrays = flashpack.numpy.load_file(packed, verify=True)
    assert arrays["steps"].tolist() == list(range(3000))
    assert flashpack.verify_file(packed).verified_bytes == read_footer(packed)["total_payload_bytes"]


def test_models_take_them(packed: Path) -> None:
    expected = {"weight": weights()["layer.weight"], "bias": weights()["layer.bias"].bfloat16()[:640]}
    flashpack.save_file(expected, packed, compress=packed.stem)
    for options in ({}, {"in_place": True}):
        model = nn.Linear(1000, 640, dtype=torch.bfloat16)
        flashpack.assign_from_file(model, packed, **options)
        assert_same(model.state_dict(), expected)


@ARRANGEMENTS
def test_open_decodes_a_tensor_when_it_is_asked_for(tmp_path: Path, shard_bytes: int | None) -> None:
    path = tmp_path / "model.flashpack"
    large = {"first": torch.randn(600_000), "second": torch.randn(500_000)}
    flashpack.save_file(large, path, compress="fast", max_shard_size=shard_bytes)
    damaged = path if shard_bytes is None else tmp_path / "model-00002-of-00002.flashpack"
    flip_byte(damaged, damaged.stat().st_size - 9000)
    with flashpack.open(path) as file:
        assert torch.equal(file.get_tensor("first"), large["first"])
        assert file.get_slice("second").get_shape() == [500_000]
        with pytest.raises(flashpack.ChecksumError):
            file.get_tensor("second")


@ARRANGEMENTS
@pytest.mark.parametrize("options", [{"eager": True}, {"in_place": True}], ids=str)
def test_a_model_is_read_once(
    options: dict[str, Any], tmp_path: Path, shard_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.flashpack"
    loads: list[Any] = []

    def counted(*given: Any) -> Any:
        loads.append(given)
        return run_load(*given)

    monkeypatch.setattr(load, "run_load", counted)
    monkeypatch.setattr(in_place, "run_load", counted)
    flashpack.save_file(weights(), path, compress="fast", max_shard_size=shard_bytes)
    layer = nn.Linear(1000, 640, bias=False, dtype=torch.bfloat16)
    model = nn.ModuleDict({"layer": layer})
    flashpack.assign_from_file(
        model, path, ignore_names=["layer.bias", "steps", "scalar", "empty"], strict=False, **options
    )
    assert torch.equal(layer.weight, weights()["layer.weight"])
    assert len(loads) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_every_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"a": noise(dtype, (70, 50)), "b": noise(dtype, ()), "c": noise(dtype, (0, 2))}
    tensors |= {"tied": tensors["a"], "strided": noise(dtype, (40, 30), 1).T}
    for level in LEVELS:
        flashpack.save_file(tensors, tmp_path / level, compress=level)
        loaded = flashpack.load_file(tmp_path / level)
        assert_same(loaded, tensors)
        assert loaded["tied"].data_ptr() == loaded["a"].data_ptr()


def test_conversions_go_there_and_back(packed: Path, tmp_path: Path) -> None:
    plain, again = tmp_path / "plain.flashpack", tmp_path / "again.flashpack"
    flashpack.save_file(weights(), plain)
    assert convert_to_flashpack(packed, again) == str(again)
    assert again.read_bytes() == plain.read_bytes()
    convert_to_flashpack(plain, again, compress=packed.stem)
    assert again.read_bytes() == packed.read_bytes()
    assert read_footer(again)["checksums"] == read_footer(plain)["checksums"]
    with pytest.raises(ValueError, match="its own source"):
        convert_to_flashpack(packed, packed, compress="fast")


def test_files_out_of_compressed_files_are_compressed(packed: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.flashpack"
    convert_to_flashpack(packed, made, dtype="float16", compress=packed.stem)
    assert_same(
        flashpack.load_file(made),
        {n: it.half() if it.is_floating_point() else it for n, it in weights().items()},
    )
    assert storage(made)[0] == "flashpack_v5"
    assert_success(run("rename", packed, "layer", "new"))
    assert storage(packed)[0] == "flashpack_v5"
    assert_same(flashpack.load_file(packed), {n.replace("layer", "new"): it for n, it in weights().items()})


def test_files_out_of_compressed_shards_are_compressed(packed: Path, tmp_path: Path) -> None:
    shards, made = tmp_path / "shards.flashpack", tmp_path / "made.flashpack"
    flashpack.save_file(weights(), shards, max_shard_size=100_000, compress=packed.stem)
    assert storage(tmp_path / "shards-00002-of-00002.flashpack")[1] == {"raw"}
    assert_success(run("extract", shards, made, "*"))
    assert storage(made) == storage(packed)


def test_signed_files_go_there_and_back(tmp_path: Path) -> None:
    plain, packed, again = (tmp_path / f"{name}.flashpack" for name in ("plain", "packed", "again"))
    flashpack.save_file(weights(), plain, {"made": "here"}, checksum="blake3")
    flashpack.sign_file(plain, FIXTURES / "keys" / "private.pem")
    convert_to_flashpack(plain, packed, compress="fast")
    for source in (packed, plain):
        convert_to_flashpack(source, again)
        assert again.read_bytes() == plain.read_bytes()
        again.unlink()


def test_every_way_to_write_takes_it(tmp_path: Path) -> None:
    class Model(nn.Linear, flashpack.FlashPackMixin):
        pass

    paths = [tmp_path / name for name in ("mixin", "safetensors", "state", "numpy", "checkpoint")]
    Model(64, 64).save_flashpack(paths[0], silent=True, compress="fast")
    source = tmp_path / "source.safetensors"
    save_safetensors({"a": torch.randn(64, 64)}, source)
    convert_to_flashpack(source, paths[1], compress="fast")
    convert_to_flashpack({"a": torch.randn(64, 64)}, paths[2], compress="fast")
    flashpack.numpy.save_file({"a": torch.randn(64, 64).numpy()}, paths[3], compress="fast")
    flashpack.save_checkpoint({"a": torch.randn(64, 64)}, paths[4], compress="fast")
    for path in paths:
        assert storage(path) == ("flashpack_v5", {"fixed32"}), path
    assert SaveOptions.take({"compress": "small"}).packing == {"compress": "small"}


def test_a_level_that_is_none_is_refused(tmp_path: Path) -> None:
    for save in (flashpack.save_file, flashpack.numpy.save_file):
        values: dict[str, Any] = {"a": torch.zeros(3)}
        if save is flashpack.numpy.save_file:
            values = {"a": torch.zeros(3).numpy()}
        with pytest.raises(ValueError, match='unknown compression "best": expected fast or small'):
            save(values, tmp_path / "file", compress="best")  # type: ignore[operator]
    assert not list(tmp_path.iterdir())


def test_shards_are_compressed(tmp_path: Path) -> None:
    path = tmp_path / "model.flashpack"
    flashpack.save_file(weights(), path, max_shard_size="1MB", compress="fast")
    shards = sorted(tmp_path.glob("model-*.flashpack"))
    assert len(shards) == 2 and {storage(shard)[0] for shard in shards} == {"flashpack_v5"}
    assert_same(flashpack.load_file(path), weights())


def test_the_command_line_makes_and_shows_them(packed: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.flashpack"
    assert_success(run("convert", packed, made), made)
    assert_success(run("convert", made, tmp_path / "small.flashpack", "--compress", "small"))
    shown = run("metadata", tmp_path / "small.flashpack").output
    assert "format: flashpack_v5" in shown and "frames of 1048576 bytes of payload each" in shown
    assert "times fewer bytes by zstd16" in shown.split("macroblocks:")[1]
    footer = json.loads(run("metadata", "--json", packed).output)
    assert footer["encoding"]["chunk_bytes"] == 1 << 20
    assert_success(run("verify", packed))


def test_explain_says_that_nothing_is_mapped(packed: Path) -> None:
    told = flashpack.explain(packed, eager=False)
    assert told.mode == "read" and told.mapped_bytes == 0
    assert told.stored_bytes < told.payload_bytes and told.codecs == read_codecs(packed)
    assert "decoded as it is read, and never mapped" in str(told)


def read_codecs(path: Path) -> list[str]:
    return sorted(storage(path)[1])


def test_damage_is_an_error_that_names_the_file(packed: Path) -> None:
    flip_byte(packed, 0)
    with pytest.raises(flashpack.FlashPackError, match=f"{packed.name}: .*is damaged"):
        flashpack.load_file(packed)
