"""0.4.5's home of the auto class."""

from ._auto import AutoFlashPackModel

__all__ = ["AutoFlashPackModel"]
