"""Conversion of model folders, by their files or by their classes, and back to what the libraries load."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import tiny
import torch
from click.testing import CliRunner
from diffusers import UNet2DModel
from flashpack import commands
from flashpack.__main__ import main
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from helpers import assert_same, listing, noise
from processes import python, succeed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertForMaskedLM

LIBRARIES = ["transformers", "diffusers"]
WHOLE = {"transformers": "model", "diffusers": "diffusion_pytorch_model"}
COMPANIONS = {"config.json", "vocab.txt", "tokenizer.json"}


def build(library: str) -> nn.Module:
    return tiny.bert() if library == "transformers" else tiny.unet()


def reload(library: str, folder: Path, **options: Any) -> nn.Module:
    model_class = BertForMaskedLM if library == "transformers" else UNet2DModel
    loaded: nn.Module = model_class.from_pretrained(folder, **options)
    return loaded


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor in the folder's safetensors."""
    return {name: data for path in folder.glob("*.safetensors") for name, data in load_file(path).items()}


def assert_made(destination: Path, result: str, variant: str | None = None) -> None:
    """A model folder with everything that a load needs, and nothing else."""
    name = f"model.{variant}.flashpack" if variant else "model.flashpack"
    assert result == str(destination)
    names = {found for found in listing(destination) if found != "generation_config.json"}
    assert names == COMPANIONS | {name}


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_there_and_back(tmp_path: Path, library: str, sharded: bool, variant: str | None) -> None:
    model = build(library)
    source = tiny.save(model, tmp_path / "source", sharded, variant)
    assert (len(list(source.glob("*.safetensors"))) > 1) == sharded
    packed = convert_to_flashpack(source, f"{tmp_path / 'packed'}/", variant=variant)
    assert_made(tmp_path / "packed", packed, variant)
    assert_same(flashpack.load_file(packed), stored(source))
    assert (tmp_path / "packed" / "config.json").read_bytes() == (source / "config.json").read_bytes()

    back = Path(revert_from_flashpack(tmp_path / "packed", f"{tmp_path / 'back'}/"))
    middle = f".{variant}" if variant else ""
    assert back == tmp_path / "back" / f"{WHOLE[library]}{middle}.safetensors"
    assert listing(back.parent) == (listing(tmp_path / "packed") | {back.name}) - {f"model{middle}.flashpack"}
    again = reload(library, back.parent, variant=variant)
    assert_same(again.state_dict(), model.state_dict())
    # Into aligned memory first: convolutions round otherwise in a mapped safetensors file.
    aligned = build(library)
    aligned.load_state_dict(again.state_dict())
    assert torch.equal(tiny.outputs(aligned), tiny.outputs(model))


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_by_the_class(tmp_path: Path, library: str, sharded: bool) -> None:
    model = build(library)
    source = tiny.save(model, tmp_path / "source", sharded)
    packed = convert_to_flashpack(source, f"{tmp_path / 'packed'}/", **{f"use_{library}": True})
    assert_made(tmp_path / "packed", packed)
    assert_same(flashpack.load_file(packed), model.state_dict())
    again = build(library)
    flashpack.assign_from_file(again, packed)
    assert torch.equal(tiny.outputs(again), tiny.outputs(model))


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_class_keeps_the_dtype_of_the_weights(tmp_path: Path, library: str) -> None:
    model = build(library).bfloat16()
    source = tiny.save(model, tmp_path / "source")
    packed = convert_to_flashpack(source, tmp_path / "a.flashpack", **{f"use_{library}": True})
    assert_same(flashpack.load_file(packed), model.state_dict())


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("by_class", [False, True], ids=["files", "class"])
def test_casts_and_ignored_names(tmp_path: Path, library: str, by_class: bool) -> None:
    source = tiny.save(build(library), tmp_path / "source", sharded=True)
    options = {f"use_{library}": by_class, "ignore_suffixes": [".bias"]}
    packed = convert_to_flashpack(source, tmp_path / "a.flashpack", "float16", **options)
    loaded = flashpack.load_file(packed)
    expected = {name: data.half() for name, data in stored(source).items() if not name.endswith(".bias")}
    kept = {name: data for name, data in loaded.items() if name in expected or not by_class}
    assert_same(kept, expected)
    assert not [name for name in loaded if name.endswith(".bias")]


def test_the_class_knows_tied_weights(tmp_path: Path) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source")
    loaded = flashpack.load_file(
        convert_to_flashpack(source, tmp_path / "a.flashpack", use_transformers=True)
    )
    head, embedding = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
    assert loaded[head].data_ptr() == loaded[embedding].data_ptr()
    assert head not in stored(source)


def test_without_a_class_neither_torch_nor_a_library_is_imported(tmp_path: Path) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source", sharded=True)
    code = """
import sys
from flashpack.__main__ import main
main(["convert", sys.argv[1], sys.argv[2]], standalone_mode=False)
main(["revert", sys.argv[2], sys.argv[3]], standalone_mode=False)
print(sorted({"torch", "transformers", "diffusers", "huggingface_hub"} & set(sys.modules)))
"""
    done = python("-c", code, source, f"{tmp_path / 'packed'}/", f"{tmp_path / 'back'}/")
    assert succeed(done).splitlines()[-1] == "[]"
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), stored(source))


# Which files.


LONG = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors"),
        ("model.safetensors.index.fp16.json", "model-00001-of-00002.fp16.safetensors"),
        (f"{LONG}.safetensors.index.fp16.json", f"{LONG}-00001-of-00002.fp16.safetensors"),
        (f"{LONG}.fp16.safetensors.index.json", f"{LONG}.fp16-00001-of-00002.safetensors"),
        ("model.safetensors.fp16.index.json", "model.fp16-00001-of-00002.safetensors"),
    ],
)
def test_every_spelling_of_a_sharded_variant(tmp_path: Path, path: Path, index: str, shard: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    names = {"a": shard, "b": shard.replace("00001-of", "00002-of")}
    for seed, (name, file) in enumerate(names.items()):
        save_file({name: noise(torch.float16, (4,), seed)}, folder / file)
    (folder / index).write_text(json.dumps({"weight_map": names}))
    save_file({"plain": torch.zeros(1)}, folder / "model.safetensors")
    convert_to_flashpack(folder, path, variant="fp16")
    expected = {name: noise(torch.float16, (4,), seed) for seed, name in enumerate(names)}
    assert_same(flashpack.load_file(path), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model", "pytorch_model"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_every_name_of_whole_weights(tmp_path: Path, stem: str, suffix: str, variant: str | None) -> None:
    for number, middle in enumerate(["", ".fp16", ".ema"]):
        weights = {"a": torch.full((2,), float(number))}
        path = tmp_path / f"{stem}{middle}{suffix}"
        save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    made = convert_to_flashpack(tmp_path, variant=variant)
    assert made == str(tmp_path / ("model.fp16.flashpack" if variant else "model.flashpack"))
    assert flashpack.load_file(made)["a"].tolist() == [1.0 if variant else 0.0] * 2


def test_a_lone_shard_is_not_taken_for_the_model(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match="one shard of several"):
        convert_to_flashpack(tmp_path)
    assert listing(tmp_path) == {"model-00001-of-00002.safetensors"}


def test_a_variant_that_is_not_there(tmp_path: Path) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source")
    with pytest.raises(FileNotFoundError, match="weights of variant 'fp16'"):
        convert_to_flashpack(source, variant="fp16")
    assert not list(source.glob("*.flashpack"))


@pytest.mark.parametrize("option", ["variant", "subfolder"])
@pytest.mark.parametrize("value", ["../x", "..", "/x", "a/../../x", "a\\b"])
def test_options_do_not_lead_out_of_the_folder(tmp_path: Path, option: str, value: str) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source")
    with pytest.raises(ValueError, match=f"{option} must .*{re.escape(repr(value))}"):
        convert_to_flashpack(source, tmp_path / "a.flashpack", **{option: value})


# What needs a decision of the user.


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_configuration_without_weights_says_what_to_do(tmp_path: Path, library: str) -> None:
    source = tiny.save(build(library), tmp_path / "source")
    next(source.glob("*.safetensors")).rename(tmp_path / "elsewhere")
    (source / "weights.h5").write_bytes(b"of another kind")
    with pytest.raises(FileNotFoundError, match=f"convert with --use-{library}") as caught:
        convert_to_flashpack(source)
    assert caught.value.filename == str(source)


def test_a_pipeline_names_its_models(tmp_path: Path) -> None:
    tiny.save(tiny.unet(), tmp_path / "unet")
    tiny.save(tiny.bert(), tmp_path / "text_encoder")
    (tmp_path / "scheduler").mkdir()
    parts = {name: ["diffusers", "X"] for name in ("unet", "text_encoder", "scheduler", "../x")}
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "P", **parts, "none": [None, None]})
    )
    result = CliRunner().invoke(main, ["convert", str(tmp_path)])
    assert result.exit_code == 1
    assert "--subfolder" in result.stderr
    assert result.stderr.rstrip().endswith(": unet, text_encoder")
    result = CliRunner().invoke(main, ["convert", str(tmp_path), "--subfolder", "unet"])
    assert str(tmp_path / "unet" / "model.flashpack") in result.stdout
    assert_same(flashpack.load_file(tmp_path / "unet" / "model.flashpack"), stored(tmp_path / "unet"))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    source = tiny.save(build(library), tmp_path / "source")
    monkeypatch.setitem(sys.modules, library, None)
    result = CliRunner().invoke(main, ["convert", str(source), f"--use-{library}"])
    assert result.exit_code == 1
    assert f"--use-{library}" in result.stderr
    assert f"pip install {library}" in result.stderr


CLASSES: list[tuple[str, dict[str, object], str]] = [
    ("diffusers", {"_class_name": "NoSuchModel"}, "NoSuchModel is no model class of diffusers"),
    ("diffusers", {"_class_name": "DDPMScheduler"}, "DDPMScheduler is no model class of diffusers"),
    ("diffusers", {"_class_name": 7}, "names no diffusers class"),
    ("transformers", {"architectures": ["logging"]}, "logging is no model class of transformers"),
    ("transformers", {"architectures": []}, "names no transformers class"),
]


@pytest.mark.parametrize(("library", "config", "reason"), CLASSES)
def test_a_class_that_is_none(tmp_path: Path, library: str, config: dict[str, object], reason: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=reason) as caught:
        convert_to_flashpack(tmp_path, **{f"use_{library}": True})
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_that_the_library_made_up_are_not_packed(tmp_path: Path, path: Path, library: str) -> None:
    source = tiny.save(build(library), tmp_path / "source")
    (file,) = source.glob("*.safetensors")
    kept = stored(source)
    gone = next(name for name in kept if name.endswith("bias"))
    del kept[gone]
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"1 tensors of .* have no weights: .*{re.escape(gone)}"):
        convert_to_flashpack(source, path, **{f"use_{library}": True})
    assert not path.exists()


def test_unknown_arguments_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(TypeError, match="varient"):
        convert_to_flashpack(tmp_path, varient="fp16")


def test_more_arguments_reach_the_library(tmp_path: Path) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source")
    packed = convert_to_flashpack(source, use_transformers=True, torch_dtype=torch.float16)
    assert {tensor.dtype for tensor in flashpack.load_file(packed).values()} == {torch.float16}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt"])
@pytest.mark.parametrize("library", [None, "transformers"])
def test_no_file_of_the_source_is_overwritten(tmp_path: Path, name: str, library: str | None) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source")
    before = (source / name).read_bytes()
    with pytest.raises(NotADirectoryError, match=r"to a file that ends in \.flashpack"):
        convert_to_flashpack(source, source / name, use_transformers=library is not None)
    assert (source / name).read_bytes() == before


# Folders as destinations.


def existing(folder: Path) -> Path:
    folder.mkdir()
    return folder


def slash(folder: Path) -> str:
    return f"{folder}/"


def neither(folder: Path) -> Path:
    return folder


@pytest.mark.parametrize("form", [existing, slash, neither])
def test_a_folder_as_destination(tmp_path: Path, form: Callable[[Path], Path | str]) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source")
    result = CliRunner().invoke(main, ["convert", str(source), str(form(tmp_path / "packed"))])
    assert result.exit_code == 0, result.output
    assert_made(tmp_path / "packed", result.stdout.strip().removeprefix("Success: Saved to "))
    assert listing(source) & {"model.flashpack"} == set()


@pytest.mark.parametrize("name", ["my.flashpack", "my.FLASHPACK"])
def test_a_file_as_destination_stands_alone(tmp_path: Path, name: str) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source")
    assert convert_to_flashpack(source, tmp_path / "out" / name) == str(tmp_path / "out" / name)
    assert listing(tmp_path / "out") == {name}


@pytest.mark.parametrize("library", LIBRARIES)
def test_by_the_class_under_the_name_of_the_release(tmp_path: Path, library: str) -> None:
    model = build(library)
    source = tiny.save(model, tmp_path / "source")
    convert = getattr(commands, f"convert_to_flashpack_from_{library}_repo_id_or_dir")
    packed = convert(str(source), str(tmp_path / "packed.v2"), "float16", silent=True)
    assert_made(tmp_path / "packed.v2", packed)
    assert_same(flashpack.load_file(packed), model.half().state_dict())
    load = importlib.import_module(f"flashpack.integrations.{library}").load_model
    assert_same(load(type(model), packed).state_dict(), model.state_dict())


def test_companions_are_followed_through_links(tmp_path: Path) -> None:
    """As in a hub's cache."""
    blobs = tiny.save(tiny.bert(), tmp_path / "blobs")
    (tmp_path / "source").mkdir()
    for blob in blobs.iterdir():
        (tmp_path / "source" / blob.name).symlink_to(blob)
    assert_made(tmp_path / "packed", convert_to_flashpack(tmp_path / "source", f"{tmp_path / 'packed'}/"))
    assert not any(path.is_symlink() for path in (tmp_path / "packed").iterdir())


def test_revert_in_place(tmp_path: Path) -> None:
    model = tiny.unet()
    source = tiny.save(model, tmp_path / "source")
    convert_to_flashpack(source, f"{tmp_path / 'packed'}/")
    made = revert_from_flashpack(tmp_path / "packed")
    assert made == str(tmp_path / "packed" / "diffusion_pytorch_model.safetensors")
    assert_same(reload("diffusers", tmp_path / "packed").state_dict(), model.state_dict())


def test_revert_of_one_variant_of_several(tmp_path: Path) -> None:
    model = tiny.bert()
    source = tiny.save(model, tmp_path / "source")
    convert_to_flashpack(source, f"{tmp_path / 'packed'}/")
    model.half().save_pretrained(source, variant="fp16")
    half = convert_to_flashpack(source, f"{tmp_path / 'packed'}/", variant="fp16")
    with pytest.raises(ValueError, match=r"model\.flashpack, model\.fp16\.flashpack"):
        revert_from_flashpack(tmp_path / "packed")
    made = revert_from_flashpack(Path(half) / "model.fp16.flashpack", f"{tmp_path / 'back'}/")
    assert made == str(tmp_path / "back" / "model.fp16.safetensors")
    again = reload("transformers", tmp_path / "back", variant="fp16", dtype=torch.float16)
    assert_same(again.state_dict(), model.state_dict())


# Quantised checkpoints: plain tensors, some of them bytes, and what the metadata says of them.


def bitsandbytes_style() -> dict[str, Tensor]:
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 16]}).encode()
    return {
        "layer.weight": noise(torch.uint8, (64, 1), 1),
        "layer.weight.absmax": noise(torch.uint8, (2,), 2),
        "layer.weight.quant_map": noise(torch.float32, (16,), 3),
        "layer.weight.nested_absmax": noise(torch.float32, (1,), 4),
        "layer.weight.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(state), dtype=torch.uint8),
        "eight.weight": noise(torch.int8, (8, 16), 5),
        "eight.SCB": noise(torch.float32, (8,), 6),
        "norm.weight": noise(torch.bfloat16, (16,), 7),
    }


def torchao_style() -> dict[str, Tensor]:
    return {
        "layer._weight_qdata": noise(torch.float8_e4m3fn, (8, 16), 1),
        "layer._weight_scale": noise(torch.float32, (8, 1), 2),
        "int4._weight_qdata": noise(torch.int32, (8, 2), 3),
        "int4._weight_scale_and_zero": noise(torch.bfloat16, (2, 8, 2), 4),
    }


@pytest.mark.parametrize("make", [bitsandbytes_style, torchao_style])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_quantised_checkpoints(tmp_path: Path, make: Callable[[], dict[str, Tensor]], sharded: bool) -> None:
    given = make()
    source = tmp_path / "source"
    source.mkdir()
    config = {"model_type": "bert", "quantization_config": {"quant_method": "x", "load_in_4bit": True}}
    (source / "config.json").write_text(json.dumps(config))
    names = list(given)
    groups = [names[0::2], names[1::2]] if sharded else [names]
    expected, shards = {"format": "pt"}, {}
    for number, group in enumerate(groups, 1):
        file = f"model-0000{number}-of-00002.safetensors" if sharded else "model.safetensors"
        said = {group[0]: json.dumps({"_type": "Float8Tensor", "_data": {"block_size": [1, 16]}})}
        save_file({name: given[name] for name in group}, source / file, {"format": "pt", **said})
        expected.update(said)
        shards.update(dict.fromkeys(group, file))
    if sharded:
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    packed = convert_to_flashpack(source, f"{tmp_path / 'packed'}/")
    assert_same(flashpack.load_file(packed), given)
    back = revert_from_flashpack(tmp_path / "packed", f"{tmp_path / 'back'}/")
    assert_same(load_file(back), given)
    with safe_open(back, framework="pt") as file:
        assert file.metadata() == expected
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_needs_a_configuration(tmp_path: Path, library: str) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    destination = tmp_path / "model.flashpack"
    result = CliRunner().invoke(main, ["convert", str(tmp_path), str(destination), f"--use-{library}"])
    assert result.exit_code == 1
    assert f"{tmp_path / 'config.json'}: names no {library} class" in result.output
    assert not destination.exists()
