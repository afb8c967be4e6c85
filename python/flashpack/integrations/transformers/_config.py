"""What a load of a transformers model asks for, and the configuration beside the weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import PretrainedConfig

from ..._core.paths import StrPath
from ..._files.folder import ADAPTER_CONFIG, CONFIG, require_config
from ..._load.load import Device
from .._request import LoadRequest, Unpacked, asked

GENERATION_CONFIG = "generation_config.json"
ADAPTER_WEIGHTS = "adapter_model.*"
# Arguments of what transformers' own loader must do, as it changes how names, shapes or modules are treated.
FOR_TRANSFORMERS = (
    *("allow_all_kernels", "fusion_config", "ignore_mismatched_sizes", "kernel_config", "key_mapping"),
    *("quantization_config", "use_kernels"),
)
# What transformers takes and drops, and what is for its downloads alone.
_WITHOUT_MEANING = (
    *("_commit_hash", "_fast_init", "_from_auto", "_from_pipeline", "from_flax", "from_tf", "mirror"),
    "tqdm_class",
)
_SHARDED = "flashpack.load_sharded gives each rank its part of a model"
_INSTEAD = {
    "gguf_file": "from_pretrained reads GGUF",
    "state_dict": "from_pretrained(None, config=..., state_dict=...) loads one",
    **dict.fromkeys(("device_mesh", "distributed_config", "tp_plan", "tp_size"), _SHARDED),
}
_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
_PREFIX = "FlashPack"  # of the classes that 0.4.5 derived from others


def take_request(
    model_class: type[Any], source: StrPath | Unpacked, device: Device | None, arguments: dict[str, Any]
) -> LoadRequest:
    """`LoadRequest.take` for a transformers model.

    Raises ValueError for arguments that no load of FlashPack files can follow, too.
    """
    _refuse(arguments)
    for name in (*_WITHOUT_MEANING, *_INSTEAD):
        arguments.pop(name, None)
    beside = (CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS, "*.py")
    library = (*FOR_TRANSFORMERS, "adapter_kwargs", "adapter_name", "generation_config")
    return LoadRequest.take(model_class, source, device, arguments, beside, library)


def _refuse(arguments: Mapping[str, Any]) -> None:
    for name in sorted(asked(arguments) & _INSTEAD.keys()):
        raise ValueError(f"{name}={arguments[name]!r} is not for a load of FlashPack files: {_INSTEAD[name]}")
    if (arguments.get("adapter_kwargs") or {}).get("subfolder"):
        raise ValueError(
            f"adapter_kwargs={arguments['adapter_kwargs']!r}: only the adapter beside a model is applied; "
            "load that of another folder by flashpack.integrations.peft.load_adapter"
        )


def read_config(
    config_class: Any, request: LoadRequest, arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The configuration, with those of `arguments` in it that are settings of it; and the other arguments.

    `config` among the arguments is one to use instead (a copy of it then gets the implementation of attention
    alone, as in transformers), or another place to read it from. Raises what `require_config` and
    `config_class` raise.
    """
    rest = dict(arguments)
    given = rest.pop("config", None)
    if isinstance(given, PretrainedConfig):
        config = copy.deepcopy(given)
        for name in _IMPLEMENTATIONS:
            if name in rest:
                setattr(config, f"_{name}", rest.pop(name))
    else:
        origin = request.folder if given is None else given
        if given is None:  # some classes would make one of default values
            require_config(request.folder)
        config, rest = config_class.from_pretrained(os.fspath(origin), return_unused_kwargs=True, **rest)
    config.name_or_path = request.source
    return config, rest


def generation_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a load's `arguments` that transformers puts into the generation configuration, too."""
    return {name: value for name, value in arguments.items() if name not in ("config", *_IMPLEMENTATIONS)}


def is_quantized(config: Any) -> bool:
    """Whether the configuration, or that of its text model, says how the weights are quantised."""
    text_config = config.get_text_config()
    return any(getattr(each, "quantization_config", None) for each in (config, text_config))


def is_for_transformers(config: Any, request: LoadRequest) -> bool:
    """Whether the configuration or the request asks for what transformers' own loader must do."""
    fused = getattr(config, "fusion_config", None)
    return bool(fused or request.library.keys() & set(FOR_TRANSFORMERS) or is_quantized(config))


def architecture_of(cls: type[Any]) -> str:
    """The class name that a configuration should give: of a class that adds only a mixin, its base's.

    Other tools and the auto classes know that one.
    """
    if "forward" in vars(cls) or "__init__" in vars(cls):
        return cls.__name__
    return next(base.__name__ for base in cls.__mro__ if not hasattr(base, "from_flashpack"))


def architectures_in(config: Any) -> list[str]:
    """Its architectures as transformers names them: 0.4.5 wrote FlashPackBertModel for BertModel."""
    return [name.removeprefix(_PREFIX) for name in config.architectures or ()]


def is_of_another_class(cls: type[Any], config: Any) -> bool:
    """Whether the configuration is that of another class of transformers, with names that `cls` may lack."""
    saved = architectures_in(config)
    return architecture_of(cls) not in saved and any(hasattr(transformers, name) for name in saved)
