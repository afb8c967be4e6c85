"""Importing this module registers `torch.ops.flashpack.*` for direct use and for TorchScript.

`library_path` is the file that a C++ program loads to get the same operators.
"""

from ._core.ops import library_path

__all__ = ["library_path"]
