"""Conversion of repositories on a model hub, through the real client and a stand-in server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import flashpack
import pytest
import tiny
import torch
from click.testing import CliRunner, Result
from flashpack.__main__ import main
from flashpack.commands import convert_to_flashpack
from helpers import assert_same, listing
from hub_server import connect, serving
from hub_store import READER_TOKEN, Hub
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from processes import environment, python, succeed
from safetensors.torch import load_file, save_file
from torch import Tensor


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """With an empty folder to work in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with serving() as server:
        connect(server, monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def convert(*args: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, args)])


def weights(number: float) -> dict[str, Tensor]:
    return {"a": torch.full((3,), number), "b": torch.arange(4)}


def safetensors(folder: Path, number: float = 0.0) -> bytes:
    save_file(weights(number), folder / "made")
    return (folder / "made").read_bytes()


def test_without_a_destination_the_repository_names_the_file(hub: Hub, work: Path, tmp_path: Path) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source")
    hub.add("tiny/bert-small", source)
    result = convert("tiny/bert-small")
    assert result.stdout == f"Success: Saved to {work / 'bert-small.flashpack'}\n", result.output
    assert listing(work) == {"bert-small.flashpack"}
    assert_same(flashpack.load_file(work / "bert-small.flashpack"), load_file(source / "model.safetensors"))
    assert not list((tmp_path / "cache").rglob("*.flashpack"))


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, "repo.flashpack"),
        ({"variant": "fp16"}, "repo.fp16.flashpack"),
        ({"subfolder": "unet"}, "repo-unet.flashpack"),
        ({"subfolder": "deep/unet/", "variant": "fp16"}, "repo-deep-unet.fp16.flashpack"),
    ],
)
def test_subfolder_and_variant(hub: Hub, tmp_path: Path, options: dict[str, str], made: str) -> None:
    files = {}
    for number, name in enumerate(["", "unet/", "deep/unet/"]):
        for offset, middle in ((0, ""), (10, ".fp16")):
            files[f"{name}diffusion_pytorch_model{middle}.safetensors"] = safetensors(
                tmp_path, number + offset
            )
    hub.add("tiny/repo", {**files, "unet/config.json": b"{}", "config.json": b"{}"})
    assert convert_to_flashpack("tiny/repo", **options) == made
    place = ["", "unet", "deep/unet/"].index(options.get("subfolder", ""))
    assert flashpack.load_file(made)["a"][0].item() == place + (10 if "variant" in options else 0)
    assert len([path for path in hub.downloads() if path.startswith("/large/")]) == 1


def test_only_what_is_needed_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    source = tiny.save(tiny.bert(), tmp_path / "source", sharded=True)
    torch.save(weights(0), source / "pytorch_model.bin")
    save_file(weights(1), source / "model.fp16.safetensors")
    save_file(weights(2), source / "consolidated.safetensors")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.safetensors").write_bytes(safetensors(tmp_path))
    hub.add("tiny/a", source)
    convert_to_flashpack("tiny/a")
    shards = {path.name for path in source.glob("model-*.safetensors")}
    assert len(shards) > 1
    assert {name for name in hub.asked() if name.endswith((".safetensors", ".bin"))} == shards
    assert "training.log" not in hub.asked()


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_torch_files_where_there_are_no_safetensors(
    hub: Hub, work: Path, tmp_path: Path, sharded: bool
) -> None:
    (tmp_path / "source").mkdir()
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    if sharded:
        for name, (key, value) in zip(names, weights(5).items(), strict=True):
            torch.save({key: value}, tmp_path / "source" / name)
        index = {"weight_map": dict(zip(weights(5), names, strict=True))}
        (tmp_path / "source" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(weights(5), tmp_path / "source" / "pytorch_model.bin")
    hub.add("tiny/a", tmp_path / "source")
    convert_to_flashpack("tiny/a", "a.flashpack")
    assert_same(flashpack.load_file(work / "a.flashpack"), weights(5))


def test_into_a_folder(hub: Hub, work: Path, tmp_path: Path) -> None:
    hub.add("tiny/a", tiny.save(tiny.bert(), tmp_path / "source"))
    result = convert("tiny/a", "packed/")
    assert result.stdout == f"Success: Saved to {work / 'packed'}\n"
    assert {"config.json", "vocab.txt", "tokenizer.json", "model.flashpack"} <= listing(work / "packed")
    assert "training.log" not in listing(work / "packed")
    assert not any(path.is_symlink() for path in (work / "packed").iterdir())


@pytest.mark.parametrize("library", ["transformers", "diffusers"])
def test_by_the_class(hub: Hub, work: Path, tmp_path: Path, library: str) -> None:
    model = tiny.bert() if library == "transformers" else tiny.unet()
    tiny.save(model, tmp_path / "source" / "part", sharded=True)
    hub.add("tiny/a", tmp_path / "source")
    result = convert("tiny/a", "--subfolder", "part", f"--use-{library}")
    assert result.exit_code == 0, result.output
    assert_same(flashpack.load_file(work / "a-part.flashpack"), model.state_dict())


def test_revision(hub: Hub, work: Path, tmp_path: Path) -> None:
    hub.add("tiny/a", {"model.safetensors": safetensors(tmp_path, 1)})
    hub.add("tiny/a", {"model.safetensors": safetensors(tmp_path, 2)}, revision="v2")
    for options, expected in (([], 1), (["--revision", "v2"], 2)):
        assert convert("tiny/a", *options).exit_code == 0
        assert flashpack.load_file(work / "a.flashpack")["a"][0].item() == expected


def test_hub_options(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny/a", {"model.safetensors": safetensors(tmp_path, 1)}, private=True)
    with pytest.raises(RepositoryNotFoundError, match=r"^tiny/a: .*a private one needs a token"):
        convert_to_flashpack("tiny/a")
    options = {"token": READER_TOKEN, "cache_dir": tmp_path / "mine"}
    convert_to_flashpack("tiny/a", "1.flashpack", **options)
    hub.requests.clear()
    convert_to_flashpack("tiny/a", "2.flashpack", local_files_only=True, **options)
    assert hub.requests == []
    convert_to_flashpack("tiny/a", "3.flashpack", force_download=True, **options)
    assert [path for path in hub.downloads() if path.startswith("/large/")]
    for number in (1, 2, 3):
        assert_same(flashpack.load_file(f"{number}.flashpack"), weights(1))
    with pytest.raises(LocalEntryNotFoundError, match=r"^tiny/a: "):
        convert_to_flashpack("tiny/a", local_files_only=True)


def test_a_pipeline_names_its_models(hub: Hub, work: Path, tmp_path: Path) -> None:
    parts = {"unet": ["diffusers", "U"], "scheduler": ["diffusers", "S"], "vae": ["diffusers", "V"]}
    index = json.dumps({"_class_name": "P", **parts}).encode()
    files = {f"{part}/config.json": b"{}" for part in ("unet", "vae")}
    large = {f"{part}/diffusion_pytorch_model.safetensors": safetensors(tmp_path) for part in ("unet", "vae")}
    hub.add("tiny/pipeline", {"model_index.json": index, **files, **large})
    result = convert("tiny/pipeline")
    assert result.exit_code == 1
    assert result.stderr.rstrip().endswith("choose one with --subfolder (subfolder=): unet, vae")
    assert not [name for name in hub.asked() if name.endswith(".safetensors")]
    assert listing(work) == set()


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["tiny/absent"], "tiny/absent: neither a local folder nor a repository that exists"),
        (["absent"], "absent: neither a local folder nor a repository that exists"),
        (["absent.safetensors"], "Not a file, a folder, or a valid repository id"),
        (["absent.flashpack"], "Not a file, a folder, or a valid repository id"),
        (["./tiny/empty"], "Not a file, a folder, or a valid repository id"),
        (["tiny/empty"], "No .safetensors or .bin weights"),
        (["tiny/empty", "--subfolder", "no"], "tiny/empty: no model in the repository"),
        (["tiny/empty", "--subfolder", "../x"], "subfolder must lie inside"),
        (["tiny/empty", "--revision", "v9"], "tiny/empty: the repository has no revision 'v9'"),
    ],
)
def test_failures(
    hub: Hub, work: Path, args: list[str], shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("tiny/empty", {"config.json": b'{"architectures": ["BertModel"]}', ".gitattributes": b""})
    result = convert(*args)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert shown in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert caplog.messages == []
    assert listing(work) == set()


@pytest.mark.parametrize(("options", "shown"), [([], False), (["-v"], True)])
def test_progress_of_the_download(hub: Hub, tmp_path: Path, options: list[str], shown: bool) -> None:
    hub.add("tiny/a", {"model.safetensors": safetensors(tmp_path), "config.json": b"{}"})
    result = convert("tiny/a", *options)
    assert result.exit_code == 0
    assert ("Fetching" in result.stderr) == shown


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/evil.safetensors", "x/../../evil.safetensors"])
def test_an_index_that_leads_out_of_the_repository(hub: Hub, tmp_path: Path, shard: str) -> None:
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    hub.add("tiny/a", {"model.safetensors.index.json": index, shard: safetensors(tmp_path)})
    with pytest.raises(ValueError, match="not a plain file name"):
        convert_to_flashpack("tiny/a")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("name", ["../model.safetensors", "../config.json", "/x/config.json"])
def test_a_listing_that_leads_out_of_the_cache(hub: Hub, work: Path, tmp_path: Path, name: str) -> None:
    hub.add("tiny/a", {name: safetensors(tmp_path), "README.md": b""})
    result = convert("tiny/a")
    assert result.exit_code == 1
    assert listing(work) == set()
    outside = {path for path in tmp_path.rglob(Path(name).name) if "snapshots" not in path.parts}
    assert outside == set()


def test_as_users_run_it(hub: Hub, work: Path, tmp_path: Path) -> None:
    """A process of its own, which gets the hub from its environment, and needs no torch."""
    source = tiny.save(tiny.unet(), tmp_path / "source")
    hub.add("tiny/a", source)
    code = """
import sys
from flashpack.__main__ import main
main(["convert", "tiny/a"], standalone_mode=False)
print(sorted({"torch", "transformers", "diffusers"} & set(sys.modules)))
"""
    variables = environment(**hub.environment(tmp_path / "home"))
    done = succeed(python("-c", code, env=variables, cwd=work))
    assert done == f"Success: Saved to {work / 'a.flashpack'}\n[]\n"
    expected = load_file(source / "diffusion_pytorch_model.safetensors")
    assert_same(flashpack.load_file(work / "a.flashpack"), expected)
