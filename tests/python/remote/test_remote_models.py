"""Models that are built, converted, served and measured from URLs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import flashpack
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from faultstore import Store
from flashpack import FlashPackMixin, cli
from flashpack.cli import bench
from flashpack.integrations import accelerate
from flashpack.integrations._serving import ServingOptions, checkpoint_tensors, find_checkpoint
from flashpack.integrations.transformers import AutoModel, load_model
from helpers import MIB, assert_same
from remote_model import FOLDER, SAFETENSORS, SHARDS, URL, module, tensors
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from flashpack._hub import objects  # isort: skip
from flashpack._hub.client import HubOptions  # isort: skip


class Small(torch.nn.Linear, FlashPackMixin):
    def __init__(self) -> None:
        super().__init__(3, 2)


@pytest.fixture
def bert(s3: Store) -> BertModel:
    """A tiny model, saved in s3://bucket/bert."""
    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    made = BertModel(config).eval()
    folder = s3.folder / "bucket/bert"
    made.config.save_pretrained(folder)
    flashpack.pack_to_file(made, folder / "model.flashpack")
    return made


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_mixin_is_built_from_a_url(s3: Store) -> None:
    (s3.folder / "bucket").mkdir()
    source = Small()
    flashpack.pack_to_file(source, s3.folder / "bucket/small.flashpack")
    assert_same(Small.from_flashpack("s3://bucket/small.flashpack").state_dict(), source.state_dict())


def test_a_model_of_transformers_is_built_from_a_folder_and_its_weights_stay_there(
    bert: BertModel, s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    s3.take()
    made = AutoModel.from_pretrained_flashpack("s3://bucket/bert/")
    assert_same(made.state_dict(), bert.state_dict())
    asked = [request for request in s3.take() if request.target.endswith("model.flashpack")]
    assert asked
    assert all(request.range for request in asked), "by ranges"
    assert [path.name for path in tmp_path.rglob("*.json") if "flashpack-objects" in str(path)] == [
        "config.json"
    ]
    assert not list(tmp_path.glob("flashpack-objects-*/**/*.flashpack"))


def test_generation_settings_of_a_configuration_at_a_url(s3: Store) -> None:
    folder = s3.folder / "bucket/gpt2"
    made = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2))
    made.save_pretrained(folder)
    flashpack.pack_to_file(made, folder / "model.flashpack")
    (folder / "generation_config.json").unlink()
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_beams": 3}))
    expected = GPT2LMHeadModel.from_pretrained(folder).generation_config
    loaded = load_model(GPT2LMHeadModel, "s3://bucket/gpt2/").generation_config
    assert loaded.to_dict() == expected.to_dict()
    assert loaded.num_beams == 3


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_bytes_of_a_model_are_fetched_once(model: Store, device: str) -> None:
    model.take()
    made = module().to(device)
    flashpack.assign_from_file(made, URL, device="cpu", strict=False)
    assert_same(made.state_dict(), tensors())
    sent = sum(request.sent for request in model.take())
    assert sent <= sum(tensor.nbytes for tensor in tensors().values()) + MIB


def test_a_cast_and_names_that_do_not_fit_are_as_from_files(model: Store) -> None:
    halves = {name: tensor.float()[:1000] for name, tensor in tensors().items()}
    flashpack.save_file(halves, model.folder / "floats.flashpack")
    (model.folder / "other").mkdir()
    (model.folder / "floats.flashpack").rename(model.folder / "other/floats.flashpack")
    loaded = flashpack.load_file("s3://other/floats.flashpack", dtype="bfloat16")
    assert_same(loaded, {name: tensor.bfloat16() for name, tensor in halves.items()})
    with pytest.raises(ValueError, match=re.escape(f"{URL}: ")):
        flashpack.assign_from_file(torch.nn.Linear(2, 2), URL)


@pytest.mark.usefixtures("model")
def test_engines_are_served_from_urls() -> None:
    found = find_checkpoint(f"{FOLDER}/", HubOptions())
    assert found == URL
    served = dict(checkpoint_tensors(found, torch.device("cpu"), ServingOptions(mapped=True)))
    assert_same(served, tensors())


@pytest.mark.usefixtures("model")
def test_safetensors_are_converted_from_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("convert", SAFETENSORS)
    assert_same(flashpack.load_file("model.flashpack"), tensors())
    run("convert", "s3://bucket/hub/model.safetensors.index.json", "whole.flashpack", "--ignore-names", "t1")
    assert flashpack.load_file("whole.flashpack").keys() == tensors().keys() - {"t1"}
    run("revert", SHARDS, "back.safetensors")
    assert_same(safetensors.torch.load_file("back.safetensors"), tensors())
    Path("out").mkdir()
    run("revert", SHARDS, "out")
    assert_same(safetensors.torch.load_file("out/model.safetensors"), tensors())


@pytest.mark.usefixtures("model")
def test_what_goes_to_a_folder_of_a_store_has_a_name_there(tmp_path: Path) -> None:
    named = tmp_path / "named.safetensors"
    safetensors.torch.save_file(tensors(), named)
    run("convert", str(named), "s3://bucket/folders/a/")
    run("convert", SAFETENSORS, "s3://bucket/folders/b/")
    flashpack.save_file(tensors(), tmp_path / "own.flashpack")
    run("convert", str(tmp_path / "own.flashpack"), "s3://bucket/folders/c/", "--compress", "fast")
    run("revert", URL, "s3://bucket/folders/d/")
    for made in ("a/named.flashpack", "b/model.flashpack", "c/own.flashpack", "d/model.safetensors"):
        assert_same(flashpack.load_file(f"s3://bucket/folders/{made}"), tensors())


def test_a_conversion_and_a_save_go_to_a_url(s3: Store, tmp_path: Path) -> None:
    (s3.folder / "bucket").mkdir()
    safetensors.torch.save_file(tensors(), tmp_path / "model.safetensors")
    output = run("convert", str(tmp_path / "model.safetensors"), "s3://bucket/new.flashpack")
    assert "s3://bucket/new.flashpack" in output
    assert_same(flashpack.load_file("s3://bucket/new.flashpack"), tensors())
    flashpack.save_file(tensors(), "s3://bucket/new.flashpack", max_shard_size=15 * MIB)
    names = sorted(path.name for path in (s3.folder / "bucket").iterdir())
    shards = [f"new-{number:05}-of-00002.flashpack" for number in (1, 2)]
    assert names == [*shards, "new.flashpack.index.json"], "and not the whole one of before"
    assert_same(flashpack.load_file("s3://bucket/new.flashpack"), tensors())
    flashpack.numpy.save_file({"a": torch.ones(3).numpy()}, "s3://bucket/array.flashpack")
    assert flashpack.numpy.load_file("s3://bucket/array.flashpack")["a"].tolist() == [1, 1, 1]


@pytest.mark.usefixtures("s3")
def test_nothing_is_made_on_the_disk_where_a_url_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    for url in ("s3://bucket", "s4://bucket/x.flashpack", "https://127.0.0.1:1/x.flashpack"):
        with pytest.raises((ValueError, OSError)):
            flashpack.save_file({"a": torch.ones(1)}, url)
    with pytest.raises(ValueError, match="pathlib has taken a slash"):
        flashpack.load_file(Path("s3://bucket/x.flashpack"))
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("model")
def test_what_is_told_of_a_load() -> None:
    flashpack.load_file(URL)
    report = flashpack.last_load()
    assert report is not None
    assert report.traffic is not None
    assert report.limit == "network"
    assert report.traffic.fetched_bytes >= report.bytes == report.verified_bytes
    assert report.traffic.retries == report.traffic.cached_bytes == 0
    assert 1 <= report.traffic.connections <= report.traffic.requests
    assert "from the store" in str(report)
    told = flashpack.explain(URL)
    assert (told.path, told.mode, told.max_threads) == (URL, "read", told.threads)
    assert told.traffic is not None
    assert 0 < told.traffic.latency < 10
    assert "requests to the store" in str(told)
    assert "page cache" not in str(told)


@pytest.mark.usefixtures("model")
def test_a_url_is_measured() -> None:
    done = CliRunner().invoke(bench, [URL, "--rounds", "1"])
    assert done.exit_code == 0, done.output
    assert re.search(r"^eager, verified .* x the limit \(network\)$", done.output, re.M)
    refused = CliRunner().invoke(bench, [URL, "--cold"])
    assert refused.exit_code == 1
    assert "the page cache holds nothing of a URL" in refused.output


@pytest.mark.usefixtures("model")
def test_metadata_and_verification() -> None:
    footer = json.loads(run("metadata", "--json", URL))
    assert footer == {
        key: value for key, value in flashpack.get_flashpack_file_metadata(URL).items() if key != "index"
    }
    assert f"Success: {URL}: " in run("verify", URL)
    assert flashpack.verify_file(SHARDS).verified_bytes > 0


@pytest.mark.usefixtures("model")
def test_weights_cannot_stay_behind_a_url() -> None:
    with pytest.raises(ValueError, match="not behind a URL"):
        accelerate.disk_offload(module(), URL, "cpu")


def test_a_server_without_ranges_is_told_of(model: Store) -> None:
    model.plan({"kind": "whole", "times": 0})
    assert_same(flashpack.load_file(URL), tensors())
    told = flashpack.explain(URL)
    assert told.note is not None
    assert told.note in str(told)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        *(("*", name) for name in ("../evil.json", "/tmp/evil.json", "..", "a/b.json")),
        *(("*/*", name) for name in ("../evil.json", "/tmp/evil.json", "..")),
    ],
)
def test_a_listing_leads_out_of_no_folder(pattern: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def call(op: str, **_: object) -> list[dict[str, object]]:
        asked.append(op)
        return [{"name": f"below/{name}" if pattern == "*/*" else name, "bytes": 1}]

    monkeypatch.setattr(objects.native, "call", call)
    with pytest.raises(FileNotFoundError):
        objects.fetch_objects("s3://bucket/hostile/", [pattern])
    assert asked == ["list"]


@pytest.mark.usefixtures("model")
def test_what_looks_into_files_looks_into_objects(tmp_path: Path) -> None:
    local, part = tmp_path / "local.flashpack", tmp_path / "part.flashpack"
    flashpack.save_file(tensors(), local)
    for where in (URL, SAFETENSORS, SHARDS, FOLDER):
        listed = json.loads(run("ls", "--json", where))
        assert {each["name"]: each["shape"] for each in listed["tensors"]} == {
            name: list(tensor.shape) for name, tensor in tensors().items()
        }
        assert all(each["file"].startswith("s3://") for each in listed["tensors"])
        assert json.loads(run("diff", "--json", where, str(local)))["equal"] == len(tensors())
    first = next(iter(tensors()))
    run("extract", URL, str(part), first)
    assert_same(flashpack.load_file(part), {first: tensors()[first]})
    flashpack.save_file({"other": tensors()[first]}, local)
    run("merge", str(part), str(local), "s3://bucket/made/merged.flashpack")
    run("convert", URL, "s3://bucket/made/half.flashpack", "--dtype", "float16")
    assert set(flashpack.load_file("s3://bucket/made/merged.flashpack")) == {first, "other"}
    assert "is not one file on a disk" in CliRunner().invoke(cli.main, ["rename", URL, "*", "m.*"]).stderr


@pytest.mark.usefixtures("model")
def test_nothing_is_written_onto_the_objects_that_it_is_made_of() -> None:
    index = f"{SHARDS}.index.json"
    shard = "s3://bucket/shards/model-00001-of-00002.flashpack"
    for source, out in ((URL, URL), (SHARDS, SHARDS), (SHARDS, index), (index, SHARDS), (index, shard)):
        for command in (["extract", source, out, "t0"], ["convert", source, out, "--ignore-names", "t0"]):
            result = CliRunner().invoke(cli.main, command)
            assert (result.exit_code, result.stderr) == (
                1,
                f"Error: {out}: the destination is its own source\n",
            )
