"""0.4.5's home of pack_to_file."""

from ._load.storage import MacroblockPlan, TensorIndexRecord
from ._save.pack import pack_to_file

__all__ = ["MacroblockPlan", "TensorIndexRecord", "pack_to_file"]
