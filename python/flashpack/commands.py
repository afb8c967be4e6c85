"""0.4.5's conversions, of anything and of one kind of source each.

`convert_to_flashpack` says what they return and raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ._convert.convert import convert_to_flashpack
from ._convert.revert import revert_from_flashpack
from ._core.names import filter_kwargs_for_method
from ._core.paths import StrPath

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

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


def convert_to_flashpack_from_state_dict(
    state_dict: Mapping[str, Tensor],
    destination_path: StrPath,
    dtype: torch.dtype | str | None = None,
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
    silent: bool | None = True,
) -> str:
    """Write a state dict to the file `destination_path`."""
    ignore = (ignore_names, ignore_prefixes, ignore_suffixes)
    return convert_to_flashpack(state_dict, destination_path, dtype, *ignore, silent=silent)


def convert_to_flashpack_from_model(
    model: nn.Module,
    destination_path: StrPath,
    dtype: torch.dtype | str | None = None,
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
    silent: bool | None = True,
) -> str:
    """Write a model's state dict to the file `destination_path`."""
    ignore = (ignore_names, ignore_prefixes, ignore_suffixes)
    return convert_to_flashpack(model, destination_path, dtype, *ignore, silent=silent)


def convert_to_flashpack_from_state_dict_file(
    path: StrPath,
    destination_path: StrPath | None = None,
    dtype: torch.dtype | str | None = None,
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
    silent: bool | None = True,
) -> str:
    """Convert a weight file."""
    ignore = (ignore_names, ignore_prefixes, ignore_suffixes)
    return convert_to_flashpack(path, destination_path, dtype, *ignore, silent=silent)


def convert_to_flashpack_from_diffusers_repo_id_or_dir(
    model_dir: StrPath,
    destination_path: StrPath,
    dtype: torch.dtype | str | None = None,
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
    silent: bool | None = True,
    **kwargs: Any,
) -> str:
    """Convert a model folder or a repository, which diffusers loads."""
    ignore = (ignore_names, ignore_prefixes, ignore_suffixes)
    return convert_to_flashpack(
        model_dir, destination_path, dtype, *ignore, silent=silent, use_diffusers=True, **kwargs
    )


def convert_to_flashpack_from_transformers_repo_id_or_dir(
    model_dir: StrPath,
    destination_path: StrPath,
    dtype: torch.dtype | str | None = None,
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
    silent: bool | None = True,
    **kwargs: Any,
) -> str:
    """Convert a model folder or a repository, which transformers loads."""
    ignore = (ignore_names, ignore_prefixes, ignore_suffixes)
    return convert_to_flashpack(
        model_dir, destination_path, dtype, *ignore, silent=silent, use_transformers=True, **kwargs
    )
