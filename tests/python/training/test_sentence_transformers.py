"""sentence-transformers: its folders as FlashPack and back, embeddings equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from processes import environment, python, succeed
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

TEXTS = ["the cat sleeps", "a train leaves"]
WORDS = ["[PAD]", "[UNK]", *sorted({word for text in TEXTS for word in text.split()})]


# The library loads the one by an automatic class, the other by its own.
MODELS = {
    "bert": lambda: BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
        )
    ),
    "t5": lambda: T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the library saves a model of three modules."""
    made = tmp_path_factory.mktemp("sentences")
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        made / "model"
    )
    MODELS[request.param]().save_pretrained(made / "model")
    modules = [Transformer(str(made / "model")), Pooling(16), Dense(16, 5)]
    SentenceTransformer(modules=modules, device="cpu").save(str(made / "plain"))
    convert_to_flashpack(made / "plain", f"{made / 'packed'}/")
    return made


def embeddings(path: Path, **options: object) -> torch.Tensor:
    return torch.from_numpy(SentenceTransformer(str(path), device="cpu", **options).encode(TEXTS))


def test_a_folder_comes_back_as_it_was(folder: Path) -> None:
    revert_from_flashpack(folder / "packed", f"{folder / 'back'}/")
    assert torch.equal(embeddings(folder / "back"), embeddings(folder / "plain"))


LOAD = """
import sys, flashpack, torch
from sentence_transformers import SentenceTransformer
flashpack.patch_integrations()
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"use_flashpack": True})
torch.save(torch.from_numpy(model.encode(sys.argv[3:])), sys.argv[2])
"""


@pytest.mark.slow
def test_a_packed_folder_loads_directly(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: the classes of transformers are patched for good."""
    assert (folder / "packed/model.flashpack").is_file()
    assert not (folder / "packed/model.safetensors").exists()
    env = environment(HF_HUB_OFFLINE="1")
    succeed(python("-W", "ignore", "-c", LOAD, folder / "packed", tmp_path / "out.pt", *TEXTS, env=env))
    assert torch.equal(torch.load(tmp_path / "out.pt"), embeddings(folder / "plain"))
