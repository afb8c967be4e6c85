"""0.4.5's home of pack_to_file."""

from ._save import pack_to_file
from ._storage import MacroblockPlan, TensorIndexRecord

__all__ = ["MacroblockPlan", "TensorIndexRecord", "pack_to_file"]
