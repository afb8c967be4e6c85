"""0.4.5's home of the reading functions."""

from ._inspect.verify import get_flashpack_file_metadata as get_flashpack_file_metadata
from ._inspect.verify import is_flashpack_file as is_flashpack_file
from ._load.options import resolve_shard_strategy as resolve_shard_strategy
from ._load.storage import FlashTensorStorage as FlashTensorStorage
from ._load.storage import MacroblockSpec as MacroblockSpec
from ._load.storage import iterate_from_flash_tensor as iterate_from_flash_tensor
from ._load.storage import read_flashpack_file as read_flashpack_file
from ._load.storage import revert_from_file as revert_from_file
from ._module.assign import assign_from_file as assign_from_file
from ._ranks.load import read_flashpack_file_distributed as read_flashpack_file_distributed
