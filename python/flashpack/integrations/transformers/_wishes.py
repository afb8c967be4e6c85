"""What the caller of a load asks for, collected from its arguments once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from ..._load.options import LoadOptions
from .._arguments import load_options, one_device, one_dtype, take_load_arguments

Device = str | int | torch.device

# What transformers' own loader must do, as it changes how names, shapes or modules are treated.
_FOR_TRANSFORMERS = ("ignore_mismatched_sizes", "key_mapping", "quantization_config")
# Meant for other formats or for choosing a class, and taken so that calls need not be rewritten.
_WITHOUT_MEANING = ("low_cpu_mem_usage", "trust_remote_code", "use_safetensors", "weights_only")


@dataclass(frozen=True)
class Wishes:
    """`dtype`: None keeps the file's. `for_transformers`: arguments that only its own loader can follow."""

    options: LoadOptions
    dtype: torch.dtype | None = None
    output_loading_info: bool = False
    generation_config: GenerationConfig | None = None
    for_transformers: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def take(cls, model_class: type[Any], device: Device | None, arguments: dict[str, Any]) -> Wishes:
        """Collect the wishes from `arguments` and remove them there; `model_class` may have defaults.

        Raises ValueError for more than one device or dtype, an unknown dtype, and options without sense.
        """
        target = one_device(device, arguments.pop("device_map", None))
        dtype = one_dtype(arguments.pop("dtype", None), arguments.pop("torch_dtype", None))
        reports = bool(arguments.pop("output_loading_info", False))
        options = load_options(model_class, take_load_arguments(arguments), target, reports=reports)
        others = {name: arguments.pop(name, None) for name in _FOR_TRANSFORMERS}
        for name in _WITHOUT_MEANING:
            arguments.pop(name, None)
        return cls(
            options,
            dtype,
            reports,
            arguments.pop("generation_config", None),
            {name: value for name, value in others.items() if value},
        )

    @property
    def device(self) -> torch.device:
        """Where the model goes."""
        device: Any = self.options.device
        return torch.device(device)
