"""transformers' Trainer: checkpoints with FlashPack weights, and training that is resumed from them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import nn

from ..._convert.convert import convert_to_flashpack
from ..._files.folder import copy_companions, weights_name
from ..._files.sources import files_of
from ..._module.assign import assign_from_file
from .._weights import find_weights, has_weights
from ..peft import WEIGHTS, write_plain_adapter

if TYPE_CHECKING:
    from transformers import Trainer

    _Base = Trainer
else:
    _Base = object

__all__ = ["FlashPackTrainerMixin"]


class FlashPackTrainerMixin(_Base):
    """Mix into a Trainer class, before it: `class MyTrainer(FlashPackTrainerMixin, Trainer)`.

    The weights of checkpoints, and of `save_model`, become `model.flashpack`, those of adapters
    `adapter_model.flashpack`. `train(resume_from_checkpoint=...)` and `load_best_model_at_end` read these,
    and safetensors where there are such. Pushes of checkpoints upload the packed weights, too. Optimizer,
    scheduler and random states are saved as ever.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            _pack(Path(output_dir or self.args.output_dir or "."))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._can_push():  # what is being uploaded is not to change
            checkpoint = Path(checkpoint_folder)
            packed = [Path(name) for name in (weights_name(), WEIGHTS) if (checkpoint / name).is_file()]
            copy_companions(checkpoint, packed, Path(self.args.output_dir or "."))
            super()._push_from_checkpoint(checkpoint_folder)

    def _can_push(self) -> bool:
        """Whether the Trainer pushes a checkpoint now."""
        from transformers.trainer_utils import HubStrategy

        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return False
        earlier = self.push_in_progress
        return self.args.hub_always_push or earlier is None or earlier.is_done()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if _has_adapters(folder):
            with _plain_adapters(folder) as plain:
                super()._load_from_checkpoint(plain, model)
        elif has_weights(folder, ""):
            into: Any = self.model if model is None else model
            # As lenient as the Trainer, which warns.
            keys = assign_from_file(into, find_weights(folder), strict=False, dtype="model")
            self._issue_warnings_after_load(keys)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint or "")
        if _has_adapters(best) or has_weights(best, ""):
            self._load_from_checkpoint(os.fspath(best))
        else:
            super()._load_best_model()


def _has_adapters(folder: Path) -> bool:
    """Whether a checkpoint has FlashPack adapters: PEFT saves all but "default" to folders of their names."""
    return (folder / WEIGHTS).is_file() or any(folder.glob(f"*/{WEIGHTS}"))


@contextmanager
def _plain_adapters(checkpoint: Path) -> Iterator[str]:
    """A temporary folder with all adapters of a checkpoint as PEFT itself saves them."""
    with TemporaryDirectory(prefix="flashpack-") as scratch:
        for source in (checkpoint, *filter(Path.is_dir, checkpoint.iterdir())):
            target = Path(scratch, source.relative_to(checkpoint))
            target.mkdir(exist_ok=True)
            if (source / WEIGHTS).is_file():
                write_plain_adapter(source, target)
            else:
                for file in source.glob("adapter_*"):
                    (target / file.name).symlink_to(file.absolute())
        yield scratch


def _pack(folder: Path) -> None:
    """Replace the safetensors that the Trainer has written to `folder`."""
    model = folder / "model.safetensors"
    for weights, source, name in (
        (model, model, weights_name()),
        (folder / "model.safetensors.index.json", folder, weights_name()),
        (folder / "adapter_model.safetensors", folder / "adapter_model.safetensors", WEIGHTS),
    ):
        if weights.is_file():
            files = {*files_of(weights), weights}
            convert_to_flashpack(source, folder / name)
            for file in files:
                file.unlink()
