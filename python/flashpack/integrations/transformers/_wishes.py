"""What the caller of a load asks for, collected from its arguments once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from ..._options import OPTION_NAMES, LoadOptions

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
    def take(
        cls,
        device: Device | None,
        arguments: dict[str, Any],
        pick: Callable[[dict[str, Any]], LoadOptions],
    ) -> Wishes:
        """Collect the wishes from `arguments` and remove them there; `pick` makes the options of a load.

        Raises ValueError for more than one device, an unknown dtype, `in_place`, and options without sense.
        """
        if arguments.get("in_place"):
            raise ValueError("in_place=True fills a model that exists: use flashpack.assign_from_file")
        options = {name: arguments.pop(name) for name in OPTION_NAMES & arguments.keys()}
        options["device"] = _single_device(device, arguments.pop("device_map", None))
        dtype, torch_dtype = arguments.pop("dtype", None), arguments.pop("torch_dtype", None)
        others = {name: arguments.pop(name, None) for name in _FOR_TRANSFORMERS}
        for name in _WITHOUT_MEANING:
            arguments.pop(name, None)
        return cls(
            pick(options),
            _dtype(torch_dtype if dtype is None else dtype),
            bool(arguments.pop("output_loading_info", False)),
            arguments.pop("generation_config", None),
            {name: value for name, value in others.items() if value},
        )

    @property
    def device(self) -> torch.device:
        """Where the model goes."""
        device: Any = self.options.device
        return torch.device(device)


def _single_device(device: Device | None, device_map: Any) -> torch.device:
    """The one device that the two arguments name; the CPU if they name none."""
    mapped = device_map
    if isinstance(device_map, Mapping):
        targets = list(dict.fromkeys(device_map.values()))
        mapped = targets[0] if len(targets) == 1 else device_map
    try:
        named = [torch.device(each) for each in (device, mapped) if each is not None]
    except (RuntimeError, TypeError):
        raise ValueError(
            f'a FlashPack model loads to a single device, as device_map={{"": "cuda:0"}} names it, '
            f"not to device={device!r}, device_map={device_map!r}"
        ) from None
    if len(set(named)) > 1:
        raise ValueError(f"device={device!r} and device_map={device_map!r} name different devices")
    return named[0] if named else torch.device("cpu")


def _dtype(dtype: Any) -> torch.dtype | None:
    """None, "auto" (both: as in the file), a floating dtype or its name."""
    if dtype is None or dtype == "auto":
        return None
    resolved = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(f'dtype must be a floating torch.dtype, its name, or "auto", not {dtype!r}')
    return resolved
