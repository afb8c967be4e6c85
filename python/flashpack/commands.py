"""0.4.5's home of the conversions behind the command line."""

from ._convert.convert import convert_to_flashpack
from ._convert.kinds import (
    convert_to_flashpack_from_diffusers_repo_id_or_dir,
    convert_to_flashpack_from_model,
    convert_to_flashpack_from_state_dict,
    convert_to_flashpack_from_state_dict_file,
    convert_to_flashpack_from_transformers_repo_id_or_dir,
)
from ._convert.revert import revert_from_flashpack
from ._core.hints import filter_kwargs_for_method

__all__ = [
    "convert_to_flashpack",
    "convert_to_flashpack_from_diffusers_repo_id_or_dir",
    "convert_to_flashpack_from_model",
    "convert_to_flashpack_from_state_dict",
    "convert_to_flashpack_from_state_dict_file",
    "convert_to_flashpack_from_transformers_repo_id_or_dir",
    "filter_kwargs_for_method",
    "revert_from_flashpack",
]
