"""The mixin for model classes."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedModel

from ..._core.paths import StrPath
from ...mixin import FlashPackMixin
from ._model import load_model, save_model
from ._wishes import Device


class FlashPackTransformersModelMixin(PreTrainedModel, FlashPackMixin):  # type: ignore[no-untyped-call]
    """Mix into a transformers model class, before or after it.

    `FlashPackMixin`'s class attributes are defaults for loading here, too. `flashpack_init_method` is called
    with the configuration.
    """

    flashpack_init_method: ClassVar[str | None] = "from_config"  # which model classes lack: they are called

    def save_pretrained_flashpack(self, save_directory: StrPath, **kwargs: Any) -> None:
        """Save to a folder, and push it if asked to: `save_model`, whose arguments these are."""
        save_model(self, save_directory, **kwargs)

    @classmethod
    def from_pretrained_flashpack(
        cls,
        pretrained_model_name_or_path: StrPath,
        device: Device | None = None,
        *model_args: Any,
        **kwargs: Any,
    ) -> Any:
        """Load from a folder or a repository: `load_model`, whose arguments these are."""
        return load_model(cls, pretrained_model_name_or_path, device, *model_args, **kwargs)


# transformers gave the mixin a configuration class as it was made. Before a model class in a list of bases it
# would hide that one's own.
if "config_class" in vars(FlashPackTransformersModelMixin):
    del FlashPackTransformersModelMixin.config_class
