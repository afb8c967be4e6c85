"""0.4.5's home of the mixin."""

from ._mixin import FlashPackTransformersModelMixin

__all__ = ["FlashPackTransformersModelMixin"]
