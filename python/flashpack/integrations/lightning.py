"""PyTorch Lightning: whole training states as FlashPack files, and modules out of them."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .._core.paths import StrPath, is_url
from .._files.sources import is_flashpack
from .._load.checkpoint import load_checkpoint
from .._save.checkpoint import save_checkpoint

if TYPE_CHECKING:
    from lightning_fabric.plugins import TorchCheckpointIO
else:  # the package `lightning` has classes of its own
    _FABRIC = "lightning.fabric" if importlib.util.find_spec("lightning") else "lightning_fabric"
    TorchCheckpointIO = importlib.import_module(f"{_FABRIC}.plugins").TorchCheckpointIO

__all__ = ["FlashPackCheckpointIO", "load_from_checkpoint"]

M = TypeVar("M")


class FlashPackCheckpointIO(TorchCheckpointIO):  # type: ignore[misc] # unless Lightning is installed
    """The plugin: `Trainer(plugins=[FlashPackCheckpointIO()])`, and `fit(ckpt_path=...)` to resume.

    A checkpoint is what `save_checkpoint` writes, under any name; the states of callbacks and the
    hyperparameters have to be plain values. Those that torch has saved are loaded as such.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: StrPath, storage_options: Any = None) -> None:
        """Write the state; TypeError for `storage_options`, of which there are none."""
        if storage_options is not None:
            raise TypeError("FlashPackCheckpointIO takes no storage_options")
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: StrPath, map_location: Any = None, weights_only: bool | None = None
    ) -> Any:
        """The state, on the device that `map_location` names, else on the CPU."""
        if is_url(path) or is_flashpack(Path(path)):
            return load_checkpoint(path, _device(map_location))
        return super().load_checkpoint(path, map_location, weights_only)


def load_from_checkpoint(
    module: type[M],
    path: StrPath,
    map_location: Any = None,
    *,
    strict: bool | None = None,
    **arguments: Any,
) -> M:
    """`module.load_from_checkpoint` of a FlashPack file; `arguments` count before its hyperparameters.

    Raises as that, and what `flashpack.load_checkpoint` raises.
    """
    core = next(base.__module__ for base in module.__mro__ if base.__name__ == "LightningModule")
    saving = importlib.import_module(core.rpartition(".")[0] + ".saving")
    device = _device(map_location)
    checkpoint = load_checkpoint(path, device)
    checkpoint.setdefault("hyper_parameters", {}).update(arguments)
    made: Any = saving._load_state(module, checkpoint, strict=strict, **arguments)
    placed: M = made.to(device)
    return placed


def _device(map_location: Any) -> torch.device:
    """What torch.load's `map_location` names, if it is one device."""
    return torch.device(map_location if isinstance(map_location, str | torch.device) else "cpu")
