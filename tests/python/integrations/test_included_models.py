"""`include=` where a library builds the model: what is left out is initialized, not left on meta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from flashpack.integrations.diffusers import AutoFlashPackModel
from flashpack.integrations.diffusers.model import save_model as save_unet
from flashpack.integrations.transformers import AutoModelForMaskedLM
from flashpack.integrations.transformers._save import save_model as save_bert
from helpers import assert_same

MODELS: dict[str, tuple[Any, Any, Any, str]] = {
    "transformers": (tiny.bert, save_bert, AutoModelForMaskedLM, "bert.embeddings"),
    "diffusers": (tiny.unet, save_unet, AutoFlashPackModel, "conv_in"),
}


@pytest.mark.parametrize("library", MODELS)
def test_only_these_layers_of_a_library_s_model(library: str, tmp_path: Path) -> None:
    build, save, cls, module = MODELS[library]
    model = build()
    save(model, tmp_path)
    loaded = cls.from_pretrained_flashpack(tmp_path, include=[module])
    assert type(loaded) is type(model)
    names = [name for name in model.state_dict() if name.startswith(f"{module}.")]
    assert names
    assert_same(
        {name: loaded.state_dict()[name] for name in names},
        {name: model.state_dict()[name] for name in names},
    )
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    with pytest.raises(ValueError, match=r"include: 'nothing' fits none of \d+ tensors"):
        cls.from_pretrained_flashpack(tmp_path, include=["nothing"])
