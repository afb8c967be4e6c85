"""FlashPackDiffusionPipeline: a pipeline whose components with weights are FlashPack files."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..._core.hints import keywords_of, warn_of_unused
from ..._core.paths import StrPath, text_path
from ..._hub.client import HubOptions
from ..._load.options import OPTION_NAMES
from .._arguments import one_device, one_dtype, take_load_arguments
from .._weights import BUILDING, SUFFIX
from ._classes import class_hints, component_class, pipeline_class
from ._components import Loading, library_variant, load_weights, packed_variants
from ._download import fetch_pipeline
from ._index import Index, as_diffusers_reads
from ._pipeline_save import save_pipeline

# What DiffusionPipeline.from_pretrained takes for what it loads itself, beside components and hub options.
_LIBRARY_ARGUMENTS = {
    *("custom_pipeline", "custom_revision", "disable_mmap", "load_connected_pipeline", "low_cpu_mem_usage"),
    *("max_memory", "offload_folder", "offload_state_dict", "provider", "provider_options", "sess_options"),
    *("trust_remote_code", "use_onnx", "use_safetensors"),
}


def load_pipeline(
    cls: Any,
    /,
    pretrained_model_name_or_path: StrPath,
    device: Any = None,
    *,
    dtype: Any = None,
    torch_dtype: Any = None,
    variant: str | None = None,
    device_map: Any = None,
    **arguments: Any,
) -> Any:
    """A pipeline of `cls` from a folder, a repository or one .flashpack file, on `device` (default: the CPU).

    Components with a FlashPack file are loaded from it, all others as diffusers loads them; those given as
    keyword arguments are taken as they are. `dtype`: for all, or by component, with "default" for the rest
    (float32 if left out); without it those of the files. `variant` falls back to a component's plain weights.
    Other arguments are hub options, options of `assign_from_file`, and what `cls.from_pretrained` takes; a
    warning names what none of them takes.

    Called on DiffusionPipeline or FlashPackDiffusionPipeline, the class is the one that was saved.

    Raises what `load_model` and `cls.from_pretrained` raise, FileNotFoundError for a folder without
    pipeline or a variant that no component has, ValueError for a component whose class is not to be found.
    """
    if arguments.get("quantization_config") is not None:
        raise ValueError(
            "quantization_config is for from_pretrained: FlashPack files load as they were saved"
        )
    dtypes = dtype if isinstance(dtype, dict) else torch_dtype
    if isinstance(dtypes, dict):
        dtypes = {"default": torch.float32, **dtypes}  # as in diffusers
    else:
        dtypes = one_dtype(dtype, torch_dtype)
    loading = Loading(one_device(device, device_map), dtypes, variant, take_load_arguments(arguments))
    hub = HubOptions.take(arguments)
    arguments.pop("use_flashpack", None)  # of what diffusers' own loader is to load, nothing is FlashPack
    path = Path(text_path(pretrained_model_name_or_path))
    if path.is_file() and path.suffix == SUFFIX:
        from ._single_file import load_single_file

        pipeline = load_single_file(functools.partial(_class_of, cls, arguments), path, loading, arguments)
    else:
        folder, index = fetch_pipeline(pretrained_model_name_or_path, hub, variant)
        pipeline = _load_folder(_class_of(cls, arguments, index), folder, index, loading, arguments)
    if loading.device is not None:
        pipeline.to(loading.device)
    pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
    return pipeline


def _class_of(cls: Any, arguments: dict[str, Any], index: Index) -> Any:
    found = _resolved(cls, arguments, index)
    _drop_unknown(found, arguments)
    return found


def _resolved(cls: Any, arguments: dict[str, Any], index: Index) -> Any:
    if cls is not DiffusionPipeline and cls is not FlashPackDiffusionPipeline:
        return cls
    custom = arguments.get("custom_pipeline") is not None
    return DiffusionPipeline if custom else pipeline_class(index.content.get("_class_name"))


def _drop_unknown(cls: Any, arguments: dict[str, Any]) -> None:
    """Warn of `arguments` that neither the pipeline's initialiser nor diffusers takes, and remove them."""
    named, takes_any = keywords_of(cls.__init__)
    if cls is DiffusionPipeline or takes_any:
        return
    unknown = arguments.keys() - named - _LIBRARY_ARGUMENTS
    warn_of_unused(unknown, named | _LIBRARY_ARGUMENTS | OPTION_NAMES | keywords_of(load_pipeline)[0])
    for name in unknown:
        del arguments[name]


def _load_folder(
    cls: Any, folder: Path, index: Index, loading: Loading, arguments: dict[str, Any]
) -> DiffusionPipeline:
    """Load what is packed, and have diffusers load the rest.

    Components come one after the other: reads use every core as it is, and building modules holds the GIL
    (Stable Diffusion 1.5's three: 0.21 s, and 0.26 s in three threads on two cores).
    """
    wanted = {name: entry for name, entry in index.entries.items() if name not in arguments}
    packed = packed_variants(folder, wanted, loading.variant)
    hints = class_hints(cls)
    loaded: dict[str, Any] = {}
    for name, variant in packed.items():
        found = component_class(folder, name, wanted[name], hints)
        loaded[name] = load_weights(found, name, folder / name, loading, variant)
    rest = [name for name in wanted if name not in loaded]
    others = {
        "dtype": loading.dtype,
        "variant": library_variant(folder, dict.fromkeys(rest), loading.variant),
    }
    given = {**loaded, **arguments}
    with as_diffusers_reads(folder, index, given) as view, BUILDING:
        chosen = {name: value for name, value in others.items() if value is not None}
        pipeline: DiffusionPipeline = cls.from_pretrained(view, **chosen, **given)
    return pipeline


class FlashPackDiffusionPipeline(DiffusionPipeline):
    """Mix into a pipeline class, after it; on its own it loads whatever pipeline was saved."""

    save_pretrained_flashpack = save_pipeline
    from_pretrained_flashpack = classmethod(load_pipeline)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _registering(cls.__init__)  # type: ignore[method-assign]


def _registering(initialiser: Callable[..., None]) -> Callable[..., None]:
    """`initialiser`, after which the modules it was given are registered, if it left that out."""
    signature = inspect.signature(initialiser)

    @functools.wraps(initialiser)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        initialiser(self, *args, **kwargs)
        known = getattr(self, "_internal_dict", {})
        _, *given = signature.bind(self, *args, **kwargs).arguments.items()
        for name, value in given:
            if name not in known and _is_component(value):
                self.register_modules(**{name: value})

    return initialise


def _is_component(value: Any) -> bool:
    return isinstance(value, nn.Module) or hasattr(value, "save_pretrained")
