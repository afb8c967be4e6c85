"""SGLang's loader of models whose weights are FlashPack files: its own, over other weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.model_loader.loader import DefaultModelLoader
from torch import Tensor, nn

from ..._hub.client import HubOptions
from .._serving import ServingOptions, checkpoint_tensors, find_checkpoint


class FlashPackModelLoader(DefaultModelLoader):  # type: ignore[misc] # SGLang need not be there for mypy
    """Hands a model's FlashPack tensors to its `load_weights`, which knows what each rank takes of them."""

    def __init__(self, load_config: Any) -> None:
        self._options = ServingOptions.take(load_config.model_loader_extra_config)
        self._device = torch.device("cpu")  # mapped; for weights that are updated later
        # For what other checkpoints a model wants beside its own.
        super().__init__(dataclasses.replace(load_config, load_format="auto", model_loader_extra_config={}))

    def download_model(self, model_config: Any) -> None:
        """Fetch the weights of a repository."""
        self._find(model_config.model_path, model_config.revision)

    def load_model(self, *, model_config: Any, device_config: Any) -> nn.Module:
        """The model on its device, as SGLang's own loader makes it."""
        self._device = torch.device(device_config.device)
        model: nn.Module = super().load_model(model_config=model_config, device_config=device_config)
        return model

    def _get_weights_iterator(self, source: Any, **options: Any) -> Iterator[tuple[str, Tensor]]:
        default: Any = super()
        if source.model_config is None:  # a secondary source of the model
            return iter(default._get_weights_iterator(source, **options))
        path = self._find(source.model_or_path, source.revision)
        pairs = checkpoint_tensors(path, self._device, self._options)
        layer = self.load_config.draft_model_idx
        if layer is not None:
            return iter(default._filter_mtp_weights(pairs, source.prefix, layer))
        return ((source.prefix + name, tensor) for name, tensor in pairs)

    def _find(self, source: str, revision: str | None) -> str:
        return find_checkpoint(source, HubOptions(revision=revision, cache_dir=self.load_config.download_dir))
