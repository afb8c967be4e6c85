"""Training checkpoints: nested values whose tensors are records of the file, and the rest its metadata."""

from __future__ import annotations

from typing import Any

from .._core.constants import CHECKPOINT_KEY
from .._core.paths import StrPath
from .._files.opened import opened
from .._files.plain import from_json
from .._files.readable import Source
from .load import Device, as_device, load_tensors


def load_checkpoint(
    path: Source,
    device: Device = "cpu",
    *,
    eager: bool | None = None,
    verify: bool | None = None,
    cache_dir: StrPath | None = None,
) -> Any:
    """What `save_checkpoint` was given, with its tensors on `device`. No code of the file is run.

    Arguments as in `load_file`. On the CPU the tensors are mapped by default: they are read when they are
    touched, and may be written to.

    Raises ValueError for a file that `save_checkpoint` has not written, and what `load_file` raises.
    """
    with opened(path, cache_dir) as model:
        text = model.footer.get("metadata", {}).get(CHECKPOINT_KEY)
        if text is None:
            raise ValueError(f"{model.shown}: holds no checkpoint, only tensors: load them with load_file")
        tensors = load_tensors(model, as_device(device), eager=eager, verify=verify)
        return from_json(text, model.shown, tensors)
