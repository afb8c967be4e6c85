"""0.4.5's conversions of one kind of source each: `convert_to_flashpack` says what they return and raise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._core.paths import StrPath
from .convert import convert_to_flashpack

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


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
