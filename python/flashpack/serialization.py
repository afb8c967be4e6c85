"""0.4.5's home of pack_to_file."""

from ._save import pack_to_file

__all__ = ["pack_to_file"]
