"""0.4.5's home of the models' mixin."""

from ._mixin import FlashPackDiffusersModelMixin

__all__ = ["FlashPackDiffusersModelMixin"]
