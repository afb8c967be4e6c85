"""0.4.5's home of the pipelines' mixin."""

from ._pipeline import FlashPackDiffusionPipeline

__all__ = ["FlashPackDiffusionPipeline"]
