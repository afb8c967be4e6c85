"""Auto classes: our own subclasses, transformers' own once patched, and code that comes with a model."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import flashpack.integrations.transformers as integration
import pytest
from flashpack.integrations.transformers import save_model
from helpers import assert_same, run_python
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BertModel,
    CLIPModel,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)
from transformers_models import BUILDERS, FlashPackBert, assert_same_outputs, bert_config, llama_config

CUSTOM = """
import torch
from transformers import BertConfig, PreTrainedModel

class Custom(PreTrainedModel):
    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.fc = torch.nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(self, x):
        return self.fc(x)

    def _init_weights(self, module):
        pass
"""


@pytest.mark.parametrize(
    ("name", "auto", "expected"),
    [
        ("bert", "AutoModel", BertModel),
        ("bert-masked", "AutoModelForMaskedLM", BertForMaskedLM),
        ("llama-tied", "AutoModelForCausalLM", LlamaForCausalLM),
        ("t5", "AutoModelForSeq2SeqLM", T5ForConditionalGeneration),
        ("clip", "AutoModel", CLIPModel),
    ],
)
def test_our_own_auto_classes(name: str, auto: str, expected: type, tmp_path: Path) -> None:
    model = BUILDERS[name]().eval()
    model.save_pretrained_flashpack(tmp_path)
    loaded = getattr(integration, auto).from_pretrained_flashpack(tmp_path)
    assert type(loaded) is expected
    assert_same(loaded.state_dict(), model.state_dict())
    assert_same_outputs(loaded, model)
    assert loaded.name_or_path == str(tmp_path)


def test_our_own_auto_classes_are_transformers_classes() -> None:
    assert issubclass(integration.AutoModel, AutoModel)
    assert integration.AutoModel is integration.AutoModel
    assert integration.AutoModel.__name__ == "AutoModel"
    for name in ("AutoModelForNothing", "Auto", "BertModel"):
        with pytest.raises(AttributeError, match=name):
            getattr(integration, name)


def test_our_own_auto_classes_load_ordinary_folders_too(tmp_path: Path) -> None:
    model = BertModel(bert_config())
    model.save_pretrained(tmp_path)
    assert_same(integration.AutoModel.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_arguments_go_where_they_belong(tmp_path: Path) -> None:
    FlashPackBert(bert_config()).save_pretrained_flashpack(tmp_path / "sub", variant="v")
    loaded, info = integration.AutoModel.from_pretrained_flashpack(
        tmp_path,
        "cpu",
        subfolder="sub",
        variant="v",
        dtype="float16",
        attn_implementation="eager",
        trust_remote_code=False,
        output_loading_info=True,
        hidden_dropout_prob=0.5,
    )
    assert str(loaded.dtype) == "torch.float16"
    assert loaded.config._attn_implementation == "eager"
    assert loaded.embeddings.dropout.p == 0.5
    assert info["missing_keys"] == []


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    save_model(LlamaForCausalLM(llama_config()), tmp_path)
    config = llama_config(attention_dropout=0.5)
    loaded = integration.AutoModelForCausalLM.from_pretrained_flashpack(tmp_path, config=config)
    assert loaded.config.attention_dropout == 0.5


def test_a_model_that_an_auto_class_does_not_know(tmp_path: Path) -> None:
    FlashPackBert(bert_config()).save_pretrained_flashpack(tmp_path)
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        integration.AutoModelForSpeechSeq2Seq.from_pretrained_flashpack(tmp_path)


def test_class_names_that_0_4_5_saved(tmp_path: Path) -> None:
    model = FlashPackBert(bert_config())
    model.save_pretrained_flashpack(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["FlashPackBertModel"]}))
    loaded = integration.AutoModel.from_pretrained_flashpack(tmp_path)
    assert type(loaded) is BertModel
    assert loaded.config.architectures == ["BertModel"]


LOAD_CUSTOM = """
import os, sys
os.environ["HF_MODULES_CACHE"] = sys.argv[2]
from flashpack.integrations.transformers import AutoModel
model = AutoModel.from_pretrained_flashpack(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, model.fc.weight.shape[1], model.name_or_path == sys.argv[1])
try:
    AutoModel.from_pretrained_flashpack(sys.argv[1], trust_remote_code=False)
except ValueError as error:
    print(error)
"""


def test_code_that_comes_with_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved with the weights, and run again only with trust_remote_code=True."""
    source, folder = tmp_path / "code", tmp_path / "saved"
    source.mkdir()
    (source / "modeling_flashpack_custom.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(source)
    custom = importlib.import_module("modeling_flashpack_custom").Custom
    custom.register_for_auto_class("AutoModel")
    save_model(custom(bert_config()), folder)
    assert (folder / "modeling_flashpack_custom.py").read_text() == CUSTOM
    loaded, refused = run_python(LOAD_CUSTOM, folder, tmp_path / "modules").splitlines()
    assert loaded == "Custom 16 True"
    # The class is then transformers' own for that type of configuration, whose names are others.
    assert "Could not assign 2 names: ['fc.bias', 'fc.weight']" in refused


PATCHED = """
import sys, transformers
from transformers import AutoModel
from flashpack.integrations.transformers import patch_transformers_auto_model
assert not hasattr(AutoModel, "from_pretrained_flashpack")
assert not hasattr(transformers.BertModel, "save_pretrained_flashpack")
untouched = vars(AutoModel.__mro__[-2])["from_pretrained"]
loads, saves = transformers.PreTrainedModel.from_pretrained, transformers.PreTrainedModel.save_pretrained
patch_transformers_auto_model()
patch_transformers_auto_model()
from transformers import AutoModelForMaskedLM
assert vars(AutoModel.__mro__[-2])["from_pretrained"].__func__.__wrapped__ is untouched.__func__
assert transformers.PreTrainedModel.from_pretrained.__func__.__wrapped__ is loads.__func__
assert transformers.PreTrainedModel.save_pretrained is saves
model = AutoModel.from_pretrained(sys.argv[1])
assert type(model) is transformers.BertModel
model.save_pretrained_flashpack(sys.argv[2])
loaded = AutoModel.from_pretrained_flashpack(sys.argv[2], device="cpu")
assert type(loaded) is transformers.BertModel
assert loaded.state_dict().keys() == model.state_dict().keys()
assert all(value.equal(loaded.state_dict()[name]) for name, value in model.state_dict().items())
assert type(transformers.BertModel.from_pretrained_flashpack(sys.argv[2])) is transformers.BertModel
masked = AutoModelForMaskedLM.from_pretrained_flashpack(sys.argv[2], strict=False)
assert type(masked) is transformers.BertForMaskedLM
classes = {AutoModel: transformers.BertModel, AutoModelForMaskedLM: transformers.BertForMaskedLM}
for auto, expected in classes.items():
    switched = auto.from_pretrained(sys.argv[2], use_flashpack=True, strict=False)
    assert type(switched) is expected
    assert switched.get_input_embeddings().weight.equal(model.embeddings.word_embeddings.weight)
for dtype in (None, "float16"):  # straight to the model, and through transformers' own loader
    options = {"output_loading_info": True, "use_flashpack": True, "flashpack_kwargs": {"verify": True}}
    direct, info = transformers.BertModel.from_pretrained(sys.argv[2], dtype=dtype, **options)
    weight = model.embeddings.word_embeddings.weight.to(direct.dtype)
    assert type(direct) is transformers.BertModel and info["missing_keys"] == []
    assert direct.embeddings.word_embeddings.weight.equal(weight)
for cls in (AutoModel, transformers.BertModel):
    try:
        cls.from_pretrained(sys.argv[2], use_flashpack=False)
    except OSError as error:
        assert "model.safetensors" in str(error)
    else:
        raise AssertionError("transformers alone has loaded a FlashPack file")
print("fine")
"""


def test_patching_whatever_was_imported_before(tmp_path: Path) -> None:
    BertModel(bert_config()).save_pretrained(tmp_path / "ordinary")
    assert run_python(PATCHED, tmp_path / "ordinary", tmp_path / "packed").endswith("fine")
