"""A model class that names the method which builds it is built by that, in both libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DModel
from flashpack.integrations.diffusers import FlashPackDiffusersModelMixin
from flashpack.integrations.transformers import FlashPackTransformersModelMixin
from helpers import assert_same
from tiny_pipelines import unet
from transformers import BertModel
from transformers_models import bert_config


class Bert(BertModel, FlashPackTransformersModelMixin):
    flashpack_init_method = "build"

    @classmethod
    def build(cls, config: Any) -> Bert:
        model = cls(config)
        model.built = type(config)
        return model


class UNet(UNet2DModel, FlashPackDiffusersModelMixin):
    flashpack_init_method = "build"

    @classmethod
    def build(cls, config: Any) -> UNet:
        model: Any = cls.from_config(config)
        model.built = type(config)
        return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("library", ["transformers", "diffusers"])
def test_the_named_method_builds_the_model(tmp_path: Path, library: str) -> None:
    config = bert_config()
    model: Any = Bert(config) if library == "transformers" else UNet.from_config(unet().config)
    model.save_pretrained_flashpack(tmp_path)
    loaded = type(model).from_pretrained_flashpack(tmp_path)
    assert loaded.built is (type(config) if library == "transformers" else dict)
    assert_same(loaded.state_dict(), model.state_dict())


def test_the_mixins_name_the_method_of_the_release() -> None:
    assert FlashPackTransformersModelMixin.flashpack_init_method == "from_config"
    assert FlashPackDiffusersModelMixin.flashpack_init_method == "from_config"
