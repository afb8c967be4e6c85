"""A file that cannot be mapped, such as a compressed one, gives and refuses what one that is mapped does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack.integrations.transformers import load_model, save_model
from helpers import assert_same
from torch import Tensor
from transformers import BertModel, LlamaForCausalLM
from transformers_models import bert_config, llama_config

State = dict[str, Tensor]
QUERY = "encoder.layer.0.attention.self.query.weight"


def bert() -> BertModel:
    return BertModel(bert_config())


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(llama_config(tie_word_embeddings=True))


def outcome(model: Any, folder: Path, state: State, compress: str | None) -> tuple[str, State, Any]:
    """What a load of `state` says, what it gives, and what it reports if it is asked to."""
    save_model(model, folder)
    flashpack.pack_to_file(state, folder / "model.flashpack", compress=compress)
    try:
        loaded, said = load_model(type(model), folder).state_dict(), ""
    except ValueError as error:
        loaded, said = {}, str(error).replace(str(folder), "")
    _, info = load_model(type(model), folder, output_loading_info=True)
    return said, loaded, {key: sorted(map(str, value)) for key, value in info.items()}


@pytest.mark.parametrize(
    ("build", "change"),
    [
        (bert, lambda state: {"unexpected.weight": state[QUERY] + 1}),
        (bert, lambda state: {"unexpected.weight": state[QUERY]}),
        (bert, lambda _: {"unexpected.weight": torch.empty(0), "unexpected.bias": torch.empty(0)}),
        (bert, lambda state: {QUERY: state[QUERY][:1]}),
        (llama, lambda state: {"lm_head.weight": state["lm_head.weight"] + 1}),
        (llama, lambda _: {}),
    ],
    ids=["unexpected", "unexpected tie", "empty", "other shape", "untied head", "tied head"],
)
def test_a_compressed_file_loads_as_one_that_is_mapped(
    build: Callable[[], Any], change: Callable[[State], State], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    model = build()
    state = {**model.state_dict(), **change(model.state_dict())}
    if change(state).keys() == {QUERY}:  # refused, whatever is asked for
        for compress in (None, "fast"):
            with pytest.raises(ValueError, match=f"{QUERY}.*shape"):
                outcome(model, tmp_path / str(compress), state, compress)
        return
    mapped = outcome(model, tmp_path / "mapped", state, None)
    compressed = outcome(model, tmp_path / "compressed", state, "fast")
    assert compressed[0] == mapped[0]
    assert compressed[2] == mapped[2]
    assert_same(compressed[1], mapped[1])
