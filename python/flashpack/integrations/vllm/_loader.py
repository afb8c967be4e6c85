"""vLLM's loader of models whose weights are FlashPack files. Uses of vLLM what its own loaders use."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.model_executor.model_loader import BaseModelLoader, DefaultModelLoader

from ..._hub.client import HubOptions
from .._serving import ServingOptions, checkpoint_tensors, find_checkpoint

logger = init_logger(__name__)


class FlashPackModelLoader(BaseModelLoader):  # type: ignore[misc] # vLLM need not be there for mypy
    """Hands a model's FlashPack tensors to its `load_weights`, which knows what each rank takes of them."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self._options = ServingOptions.take(load_config.model_loader_extra_config)
        # For what other checkpoints a model wants beside its own.
        others = dataclasses.replace(load_config, load_format="auto", model_loader_extra_config={})
        self._default = DefaultModelLoader(others)

    def download_model(self, model_config: Any) -> None:
        """Fetch the weights of a repository."""
        self._find(model_config)

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Fill the model. Raises ValueError for parameters that the file lacks, as vLLM's own loader does."""
        started = time.perf_counter()
        load: Any = model.load_weights
        loaded = load(self.get_all_weights(model_config, model))
        logger.info("Loading weights took %.2f seconds", time.perf_counter() - started)
        if model_config.quantization is None and loaded is not None:
            self._default.track_weights_loading(model, loaded)

    def get_all_weights(self, model_config: Any, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The file's tensors, then those of the model's secondary sources, which vLLM itself loads."""
        path = self._find(model_config)
        unused: Any = getattr(model, "is_unused_checkpoint_weight", lambda _: False)
        yield from checkpoint_tensors(path, _device_of(model), self._options, lambda name: not unused(name))
        for source in getattr(model, "secondary_weights", ()):
            yield from self._default._get_weights_iterator(source)

    def _find(self, model_config: Any) -> str:
        hub = HubOptions(
            revision=model_config.revision,
            token=model_config.hf_token,
            cache_dir=self.load_config.download_dir,
        )
        # Of a URL vLLM has copied the configuration to a folder.
        return find_checkpoint(getattr(model_config, "model_weights", "") or model_config.model, hub)


def _device_of(model: nn.Module) -> torch.device:
    """Where the weights go; layers that wait for their quantization are on the meta device until then."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu"))
