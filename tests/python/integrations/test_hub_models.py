"""Models and pipelines pushed to a hub and loaded from it: the real client, a stand-in server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_pipelines
import torch
from diffusers import DDPMPipeline, UNet2DModel
from flashpack import FlashPackMixin
from flashpack.integrations.diffusers import (
    AutoFlashPackModel,
    FlashPackDiffusersModelMixin,
    FlashPackDiffusionPipeline,
)
from flashpack.integrations.transformers import AutoModel
from helpers import assert_same, listing
from hub_server import connect, serving
from hub_store import OWNER_TOKEN, READER_TOKEN, Hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tiny_pipelines import states
from transformers import BertModel
from transformers_models import FlashPackBert, FlashPackLlama, bert_config, llama_config


class FlashPackUNet(UNet2DModel, FlashPackDiffusersModelMixin):
    """As the documentation has it."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as server:
        connect(server, monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture(params=["diffusers", "transformers"])
def model(request: pytest.FixtureRequest) -> Any:
    """A model of either library, with the mixin of it."""
    if request.param == "transformers":
        return FlashPackBert(bert_config())
    return FlashPackUNet.from_config(tiny_pipelines.unet().config)


def packed(hub: Hub) -> list[str]:
    """The repositories' FlashPack files that were asked for, whether whole or only for their state."""
    return sorted(name for name in hub.asked() if name.endswith(".flashpack"))


# Models


def test_a_model_is_pushed_and_loaded(hub: Hub, model: Any, tmp_path: Path) -> None:
    model.save_pretrained_flashpack(
        tmp_path / "saved",
        push_to_hub=True,
        repo_id="tiny/new",
        private=True,
        token=OWNER_TOKEN,
        commit_message="Ship it",
    )
    repository = hub.repositories["tiny/new"]
    assert (repository.private, repository.head.message) == (True, "Ship it")
    assert set(repository.head.files) == {".gitattributes", "config.json", "model.flashpack", "README.md"}
    with pytest.raises(RepositoryNotFoundError, match=r"^tiny/new: .*a private one needs a token"):
        type(model).from_pretrained_flashpack("tiny/new")
    loaded = type(model).from_pretrained_flashpack("tiny/new", token=READER_TOKEN)
    assert_same(loaded.state_dict(), model.state_dict())
    assert not loaded.training
    assert isinstance(loaded, FlashPackMixin)
    asked = len(hub.requests)
    again = type(model).from_pretrained_flashpack("tiny/new", local_files_only=True)
    assert_same(again.state_dict(), model.state_dict())
    assert len(hub.requests) == asked


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_pushed_and_loaded(hub: Hub, model: Any, tmp_path: Path, variant: str | None) -> None:
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    options = {"variant": variant, "max_shard_size": size // 2}
    model.save_pretrained_flashpack(
        tmp_path / "saved", push_to_hub=True, repo_id="tiny/new", token=OWNER_TOKEN, **options
    )
    stem = f"model.{variant}" if variant else "model"
    index = f"{stem}.flashpack.index.json"
    assert index in listing(tmp_path / "saved")
    files = hub.repositories["tiny/new"].head.files
    shards = {name for name in files if name.startswith(f"{stem}-0000") and name.endswith(".flashpack")}
    assert len(shards) >= 2
    assert set(files) == {".gitattributes", "config.json", "README.md", index, *shards}
    for place in ("tiny/new", tmp_path / "saved"):
        loaded = type(model).from_pretrained_flashpack(place, variant=variant)
        assert_same(loaded.state_dict(), model.state_dict())


def test_a_push_proposed_to_the_owner(hub: Hub, model: Any, tmp_path: Path) -> None:
    hub.add("tiny/old", {"config.json": b"{}", "README.md": b"---\ntags:\n- mine\n---\n# Old\n"})
    options = {"repo_id": "tiny/old", "token": OWNER_TOKEN, "create_pr": True}
    model.save_pretrained_flashpack(tmp_path / "saved", push_to_hub=True, variant="fp16", **options)
    repository = hub.repositories["tiny/old"]
    assert repository.head.files["config.json"] == b"{}"
    (proposed,) = repository.pull_requests
    assert set(proposed.files) == {"config.json", "README.md", "model.fp16.flashpack"}
    assert b"- mine" in proposed.files["README.md"]
    assert b"# Old" in proposed.files["README.md"]


def test_a_push_without_permission(hub: Hub, model: Any, tmp_path: Path) -> None:
    hub.add("tiny/old", {"config.json": b"{}"})
    with pytest.raises(HfHubHTTPError, match=r"^tiny/old: no permission"):
        model.save_pretrained_flashpack(
            tmp_path / "saved", push_to_hub=True, repo_id="tiny/old", token=READER_TOKEN
        )
    assert hub.repositories["tiny/old"].head.files == {"config.json": b"{}"}


def test_subfolder_variant_and_revision_together(hub: Hub, model: Any, tmp_path: Path) -> None:
    model.save_pretrained_flashpack(tmp_path / "old" / "part")
    model.save_pretrained_flashpack(tmp_path / "new" / "part", variant="fp16", target_dtype=torch.float16)
    hub.add("tiny/parts", tmp_path / "old")
    hub.add("tiny/parts", tmp_path / "new", revision="halved")
    options = {"subfolder": "part", "revision": "halved"}
    loaded = type(model).from_pretrained_flashpack("tiny/parts", variant="fp16", **options)
    assert loaded.dtype == torch.float16
    assert packed(hub) == ["part/model.fp16.flashpack"]
    plain = type(model).from_pretrained_flashpack("tiny/parts", subfolder=Path("part"))
    assert_same(plain.state_dict(), model.state_dict())
    with pytest.raises(FileNotFoundError, match=r"No model\.ema\.flashpack"):
        type(model).from_pretrained_flashpack("tiny/parts", variant="ema", **options)
    with pytest.raises(RevisionNotFoundError, match="no revision 'gone'"):
        type(model).from_pretrained_flashpack("tiny/parts", subfolder="part", revision="gone")


def test_nothing_of_the_repository_in_the_cache(hub: Hub, model: Any) -> None:
    with pytest.raises(LocalEntryNotFoundError, match=r"^tiny/never: neither"):
        type(model).from_pretrained_flashpack("tiny/never", local_files_only=True)
    assert hub.requests == []


def test_a_language_model_with_its_generation_config(hub: Hub, tmp_path: Path) -> None:
    model = FlashPackLlama(llama_config(tied=True))
    model.generation_config.max_length = 7
    model.save_pretrained_flashpack(
        tmp_path / "saved", push_to_hub=True, repo_id="tiny/llama", token=OWNER_TOKEN
    )
    assert "generation_config.json" in hub.repositories["tiny/llama"].head.files
    loaded = FlashPackLlama.from_pretrained_flashpack("tiny/llama")
    assert loaded.generation_config.max_length == 7
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_model_with_an_adapter_beside_it(hub: Hub, tmp_path: Path) -> None:
    model = FlashPackLlama(llama_config())
    model.save_pretrained_flashpack(tmp_path)
    adapter = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    peft.get_peft_model(model, adapter).save_pretrained(tmp_path)
    hub.add("tiny/adapted", {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)})
    loaded = FlashPackLlama.from_pretrained_flashpack("tiny/adapted")
    assert_same(loaded.state_dict(), FlashPackLlama.from_pretrained_flashpack(tmp_path).state_dict())
    assert loaded.active_adapters() == ["default"]


def test_automatic_classes(hub: Hub, model: Any, tmp_path: Path) -> None:
    model.save_pretrained_flashpack(tmp_path)
    automatic: Any = AutoModel if isinstance(model, BertModel) else AutoFlashPackModel
    config = json.loads((tmp_path / "config.json").read_text())
    if automatic is AutoFlashPackModel:
        (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    hub.add("tiny/private", tmp_path, private=True)
    loaded = automatic.from_pretrained_flashpack("tiny/private", token=READER_TOKEN)
    assert_same(loaded.state_dict(), model.state_dict())


# Pipelines


@pytest.fixture
def pipeline(tmp_path: Path) -> Any:
    return tiny_pipelines.stable_diffusion(tmp_path / "tokenizer")


def save(pipeline: Any, folder: Path, **options: Any) -> Path:
    FlashPackDiffusionPipeline.save_pretrained_flashpack(pipeline, folder, **options)
    return folder


def test_a_pipeline_is_pushed_and_loaded(hub: Hub, pipeline: Any, tmp_path: Path) -> None:
    pushing = {"push_to_hub": True, "repo_id": "tiny/sd", "token": OWNER_TOKEN, "private": True}
    save(pipeline, tmp_path / "saved", **pushing)
    files = set(hub.repositories["tiny/sd"].head.files)
    assert hub.repositories["tiny/sd"].private
    assert {"model_index.json", "README.md", "tokenizer/tokenizer_config.json"} <= files
    assert {name for name in files if name.endswith(".flashpack")} == {
        f"{part}/model.flashpack" for part in ("vae", "unet", "text_encoder")
    }
    with pytest.raises(RepositoryNotFoundError, match=r"^tiny/sd: .*a private one needs a token"):
        FlashPackDiffusionPipeline.from_pretrained_flashpack("tiny/sd")
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack("tiny/sd", token=READER_TOKEN)
    assert_same(states(loaded), states(pipeline))
    assert loaded.tokenizer("a b").input_ids == pipeline.tokenizer("a b").input_ids
    asked = len(hub.requests)
    cached = FlashPackDiffusionPipeline.from_pretrained_flashpack("tiny/sd", local_files_only=True)
    assert_same(states(cached), states(pipeline))
    assert len(hub.requests) == asked


def test_a_pipeline_goes_to_the_cache_that_is_named(hub: Hub, pipeline: Any, tmp_path: Path) -> None:
    save(pipeline, tmp_path / "saved")
    vocabulary = tmp_path / "saved/tokenizer/words.tiktoken"
    vocabulary.write_text("YQ== 0\n")
    hub.add("tiny/sd", tmp_path / "saved")
    named = tmp_path / "named"
    FlashPackDiffusionPipeline.from_pretrained_flashpack("tiny/sd", cache_dir=named)
    assert len(list(named.rglob("unet/model.flashpack"))) == 1
    assert len(list(named.rglob(vocabulary.name))) == 1, "no kind of vocabulary stays behind"


def test_a_pipeline_is_proposed(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny/ddpm", {"README.md": b"# Old\n"})
    options = {"repo_id": "tiny/ddpm", "token": OWNER_TOKEN, "create_pr": True, "commit_message": "Please"}
    save(tiny_pipelines.ddpm(), tmp_path / "saved", push_to_hub=True, **options)
    assert set(hub.repositories["tiny/ddpm"].head.files) == {"README.md"}
    (proposed,) = hub.repositories["tiny/ddpm"].pull_requests
    assert proposed.message == "Please"
    assert "unet/model.flashpack" in proposed.files


def test_a_variant_of_a_revision(hub: Hub, pipeline: Any, tmp_path: Path) -> None:
    save(pipeline, tmp_path / "plain")
    save(pipeline, tmp_path / "half", variant="fp16", target_dtype=torch.float16)
    hub.add("tiny/sd", tmp_path / "plain")
    hub.add("tiny/sd", tmp_path / "half", revision="halved")
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack(
        "tiny/sd", variant="fp16", revision="halved"
    )
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float16}
    assert packed(hub) == [f"{part}/model.fp16.flashpack" for part in ("text_encoder", "unet", "vae")]
    with pytest.raises(FileNotFoundError, match="variant 'fp16'"):
        FlashPackDiffusionPipeline.from_pretrained_flashpack("tiny/sd", variant="fp16")


def test_each_component_in_the_format_it_has(hub: Hub, pipeline: Any, tmp_path: Path) -> None:
    save(pipeline, tmp_path / "mixed")
    for part in ("vae", "text_encoder"):
        (tmp_path / "mixed" / part / "model.flashpack").unlink()
        getattr(pipeline, part).save_pretrained(tmp_path / "mixed" / part)
    pipeline.unet.save_pretrained(tmp_path / "mixed" / "unet")  # both formats
    hub.add("tiny/mixed", tmp_path / "mixed")
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack("tiny/mixed")
    assert_same(states(loaded), states(pipeline))
    weights = {name for name in hub.asked() if name.endswith((".safetensors", ".flashpack"))}
    assert weights == {
        "text_encoder/model.safetensors",
        "unet/model.flashpack",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_a_repository_without_flashpack_files(hub: Hub, tmp_path: Path) -> None:
    made = tiny_pipelines.ddpm()
    made.save_pretrained(tmp_path / "ordinary")
    hub.add("tiny/ordinary", tmp_path / "ordinary")
    loaded = FlashPackDiffusionPipeline.from_pretrained_flashpack("tiny/ordinary")
    assert type(loaded) is DDPMPipeline
    assert_same(states(loaded), states(made))


def test_a_component_of_a_pipelines_repository(hub: Hub, pipeline: Any, tmp_path: Path) -> None:
    hub.add("tiny/sd", save(pipeline, tmp_path / "saved"))
    for part in ("unet", "text_encoder"):
        loaded = AutoFlashPackModel.from_pretrained_flashpack("tiny/sd", subfolder=part)
        half = AutoFlashPackModel.from_pretrained_flashpack(
            "tiny/sd", subfolder=part, torch_dtype=torch.float16
        )
        assert half.dtype == torch.float16
        assert type(loaded) is type(getattr(pipeline, part))
        assert_same(loaded.state_dict(), getattr(pipeline, part).state_dict())
    assert packed(hub) == ["text_encoder/model.flashpack", "unet/model.flashpack"]
