"""PEFT: an adapter in a folder with `adapter_model.flashpack` and PEFT's own configuration beside it.

PEFT itself names, casts and places the tensors, as for safetensors: adapters are small.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .._convert.convert import convert_to_flashpack
from .._convert.revert import revert_from_flashpack
from .._core.paths import StrPath, text_path
from .._files.folder import ADAPTER_CONFIG
from ._saving import folder_to_save

if TYPE_CHECKING:
    import peft
    from torch import nn

__all__ = ["load_adapter", "save_adapter"]

WEIGHTS = "adapter_model.flashpack"


def save_adapter(
    model: peft.PeftModel,
    folder: StrPath,
    adapter_name: str = "default",
    *,
    is_main_process: bool = True,
    checksum: str | None = None,
    compress: str | None = None,
    **options: Any,
) -> None:
    """Write one adapter of `model` to a folder, which is made unless it exists.

    `checksum` and `compress` as in `pack_to_file`; `options` are those of PEFT's `save_pretrained`. The names
    in the file have no adapter's name in them, so that it loads under any. Processes other than the main one
    write nothing, and take part in what PEFT gathers.

    Raises ValueError for an adapter that the model does not have, and what the two libraries raise.
    """
    target = folder_to_save(folder) if is_main_process else None
    with TemporaryDirectory(prefix="flashpack-") as scratch:
        selected = [adapter_name]
        model.save_pretrained(scratch, selected_adapters=selected, is_main_process=is_main_process, **options)
        if target is None:
            return
        plain = Path(scratch) if adapter_name == "default" else Path(scratch, adapter_name)
        if not (plain / ADAPTER_CONFIG).is_file():  # a model without adapters is saved whole
            raise ValueError(f"{type(model).__name__} has no adapter {adapter_name!r}")
        convert_to_flashpack(plain, f"{target}/", checksum=checksum, compress=compress)


def load_adapter(
    model: nn.Module | peft.PeftModel, folder: StrPath, adapter_name: str = "default", **options: Any
) -> peft.PeftModel:
    """`model` with the adapter of a folder under this name: a PeftModel, itself if it is one.

    `options` are those of PEFT's `load_adapter` or, for another model, of its `PeftModel.from_pretrained`.
    Raises FileNotFoundError for a folder without `adapter_model.flashpack`, and what PEFT raises.
    """
    import peft

    with plain_adapter(folder) as plain:
        if isinstance(model, peft.PeftModel):
            model.load_adapter(plain, adapter_name, **options)
            return model
        return peft.PeftModel.from_pretrained(model, plain, adapter_name, **options)


@contextmanager
def plain_adapter(folder: StrPath) -> Iterator[str]:
    """A temporary folder with the adapter as PEFT itself saves it."""
    with TemporaryDirectory(prefix="flashpack-") as scratch:
        write_plain_adapter(Path(text_path(folder)), Path(scratch))
        yield scratch


def write_plain_adapter(source: Path, target: Path) -> None:
    """Write the adapter in the folder `source` to the folder `target`, as PEFT itself saves it."""
    revert_from_flashpack(source / WEIGHTS, target / "adapter_model.safetensors")
    for config in source.glob(ADAPTER_CONFIG):
        shutil.copyfile(config, target / config.name)
