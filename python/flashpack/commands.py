"""0.4.5's home of the conversions behind the command line."""

from ._convert import convert_to_flashpack
from ._revert import revert_from_flashpack

__all__ = ["convert_to_flashpack", "revert_from_flashpack"]
