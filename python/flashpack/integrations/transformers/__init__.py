"""transformers models in FlashPack files.

Besides the names of `__all__`, every auto class of transformers is here by its name (`AutoModel`,
`AutoModelForCausalLM`...) as a subclass that has `from_pretrained_flashpack` without any patch.
"""

from __future__ import annotations

from typing import Any

from ._save import save_model
from .model import FlashPackTransformersModelMixin, load_model
from .patch import auto_class_named, patch_transformers_auto_model

__all__ = [
    "FlashPackTransformersModelMixin",
    "load_model",
    "patch_transformers_auto_model",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name.startswith("AutoModel"):
        return auto_class_named(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
