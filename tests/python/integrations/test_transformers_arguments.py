"""Arguments that transformers' own `from_pretrained` takes mean the same to a load of FlashPack files."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import flashpack.integrations.transformers as integration
import pytest
import torch
import transformers
from flashpack.commands import convert_to_flashpack
from flashpack.integrations.transformers import load_model
from helpers import assert_same, run_python
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, PreTrainedModel
from transformers_models import llama_config, saved_config

# What transformers drops in a loop.
DROPPED = {"mirror", "_fast_init", "low_cpu_mem_usage", "from_tf", "from_flax", "offload_state_dict"}
# What False is no value of.
NEVER_FALSE = {"dtype", "torch_dtype", "device_map", "subfolder", "revision", "cache_dir", "variant"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in both formats, with settings of generation in config.json, as in older ones."""
    LlamaForCausalLM(llama_config()).save_pretrained(tmp_path)
    convert_to_flashpack(tmp_path)
    settings = {"num_beams": 3, "no_repeat_ngram_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(saved_config(tmp_path) | settings))
    return tmp_path


# Settings of generation


@pytest.mark.parametrize("dtype", [None, torch.float16])  # straight to the model, and through transformers
@pytest.mark.parametrize("has_generation_config", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": 7},
        {"pad_token_id": 5, "bos_token_id": None},
        {"use_cache": False},
        {"output_attentions": True, "attn_implementation": "eager"},
        {"config": llama_config(), "attn_implementation": "eager"},
        {"eos_token_id": 7, "generation_config": GenerationConfig(max_length=9, eos_token_id=3)},
    ],
    ids=" ".join,
)
def test_settings_of_generation_that_are_given(
    settings: dict[str, Any], has_generation_config: bool, dtype: Any, folder: Path
) -> None:
    if not has_generation_config:
        (folder / "generation_config.json").unlink()
    expected = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, **settings)
    loaded = load_model(LlamaForCausalLM, folder, dtype=dtype, **settings)
    auto = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **settings)
    packed = integration.AutoModelForCausalLM.from_pretrained_flashpack(folder, dtype=dtype, **settings)
    for one, other in ((loaded, expected), (packed, auto)):
        assert one.generation_config.to_dict() == other.generation_config.to_dict()
        assert one.config.to_dict() == other.config.to_dict()


# Other arguments


def taken() -> set[str]:
    """What `from_pretrained` names, or takes out of its keywords."""
    signature = inspect.signature(PreTrainedModel.from_pretrained).parameters
    named = {name for name, each in signature.items() if each.kind == each.KEYWORD_ONLY}
    popped = re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(PreTrainedModel.from_pretrained))
    return (named | {*popped, *DROPPED}) - {"attn_implementation", "config", "experts_implementation"}


@pytest.mark.parametrize("load", [load_model, integration.AutoModelForCausalLM.from_pretrained_flashpack])
@pytest.mark.parametrize("value", [None, False])
def test_arguments_that_ask_for_nothing(value: Any, load: Any, folder: Path) -> None:
    source = (LlamaForCausalLM, folder) if load is load_model else (folder,)
    expected = load(*source).state_dict()
    assert {"tp_plan", "adapter_kwargs", "mirror", "weights_only"} < taken()
    for name in taken() if value is None else taken() - NEVER_FALSE:
        assert_same(load(*source, **{name: value}).state_dict(), expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_memory": {"cpu": "1GB"}, "offload_folder": "away", "offload_buffers": True},
        {"disable_mmap": True, "_fast_init": True, "mirror": "tuna", "from_tf": True},
        {"_from_auto": True, "_from_pipeline": "text-generation", "_commit_hash": "0" * 40},
        {"adapter_name": "other", "adapter_kwargs": {"revision": "main"}, "allow_all_kernels": True},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("config", [None, llama_config()])
def test_arguments_that_change_nothing_here(config: Any, arguments: dict[str, Any], folder: Path) -> None:
    expected = LlamaForCausalLM.from_pretrained(folder, config=config, **arguments)
    loaded = load_model(LlamaForCausalLM, folder, config=config, **arguments)
    assert_same(loaded.state_dict(), expected.state_dict())
    assert loaded.config.to_dict() == expected.config.to_dict()
    assert loaded.generation_config.to_dict() == expected.generation_config.to_dict()


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("tp_plan", "auto", "flashpack.load_sharded"),
        ("distributed_config", {"tp_size": 2}, "flashpack.load_sharded"),
        ("tp_size", 2, "flashpack.load_sharded"),
        ("device_mesh", object(), "flashpack.load_sharded"),
        ("gguf_file", "model.gguf", "from_pretrained reads GGUF"),
        ("state_dict", {}, "from_pretrained"),
    ],
)
def test_arguments_that_no_load_can_follow(name: str, value: Any, instead: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.* is not for a load of FlashPack files: .*{instead}"):
        load_model(LlamaForCausalLM, folder, **{name: value})


FUSED = """
import json, sys
from pathlib import Path
from flashpack.commands import convert_to_flashpack
from flashpack.integrations.transformers import load_model
from helpers import assert_same
from tiny_architectures import config_of
from transformers import Qwen3VLForConditionalGeneration

folder, given = Path(sys.argv[1]), sys.argv[2] == "given"
Qwen3VLForConditionalGeneration(config_of("qwen3_vl")).save_pretrained(folder)
convert_to_flashpack(folder)
fusion = {"patch_embeddings": True}
config = json.loads((folder / "config.json").read_text())
(folder / "config.json").write_text(json.dumps(config if given else config | {"fusion_config": fusion}))
arguments = {"fusion_config": fusion} if given else {}
loaded = load_model(Qwen3VLForConditionalGeneration, folder, **arguments)
expected = Qwen3VLForConditionalGeneration.from_pretrained(folder, **arguments)
kinds = [type(model.model.visual.patch_embed) for model in (loaded, expected)]
assert kinds[0] is kinds[1] and kinds[0].__name__ == "FusedQwen3VLVisionPatchEmbed", kinds
assert_same(loaded.state_dict(), expected.state_dict())
assert loaded.config.to_dict() == expected.config.to_dict()
"""


@pytest.mark.skipif(
    transformers.__version__.startswith("5.10."), reason="this release needs torchvision to fuse modules"
)
@pytest.mark.parametrize("place", ["given", "saved"])
def test_modules_are_fused(place: str, tmp_path: Path) -> None:
    """In a process of its own, as transformers replaces classes for good."""
    run_python(FUSED, tmp_path, place)
