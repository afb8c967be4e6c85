"""Any diffusers model, or other module with a diffusers config, in a folder: config.json and its weights."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ..._core.names import filter_kwargs_for_method, initialiser, keywords_of, warn_of_unused
from ..._core.paths import StrPath, is_url
from ..._files.folder import CONFIG, checked_subfolder, require_config, weights_name
from ..._files.sources import pinned, shown_path
from ..._hub.client import CARD_NAME, HubOptions, PushOptions, fetch, push
from ..._load.options import OPTION_NAMES
from ..._module.slots import find_slots
from ..._save.pack import pack_to_file, whole_state_dict
from ...mixin import FlashPackMixin
from .._build import BUILDING, FileDtypes, as_safetensors, build_and_load
from .._request import REQUEST_NAMES, LoadRequest, Unpacked, asked
from .._saving import SaveOptions, folder_to_save, refuse_adapters, written_weights
from .._weights import find_weights, weights_patterns
from ._classes import (
    holds_several,
    is_diffusers_module,
    is_transformers_model,
    member_folders,
    members_of,
    model_class,
)

__all__ = ["FlashPackDiffusersModelMixin"]

_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_model(model: Any, save_directory: StrPath, **kwargs: Any) -> Path:
    """Write config.json and model[.variant].flashpack into a folder, which is made; return the weights, or
    with `max_shard_size` the name that shards of them go by.

    Keyword arguments: `target_dtype`, `align_bytes`, `silent`, `num_workers`, `max_shard_size`, `checksum`,
    `compress` as in `pack_to_file`; `variant`; `state_dict`, saved instead of the model's own;
    `is_main_process=False`, with which nothing is done. `push_to_hub=True` pushes what was written to
    `repo_id` or a repository named as the folder, as `private`, `token`, `create_pr` and `commit_message`
    say. `safe_serialization` and `save_function`, which diffusers takes, have no effect, and a warning
    names them.

    Of a model that holds several, as MultiControlNetModel does, each goes to a folder, as diffusers has them:
    `folder`, then `folder`_1, `folder`_2, ...

    Raises what `pack_to_file` and huggingface_hub raise; TypeError for another keyword argument;
    NotADirectoryError for a path to a file; FileExistsError for what a load would take for one more of
    several models; ValueError for a model with PEFT adapters inside or a quantizer that cannot save it, and
    for several models with a state dict or that are to be pushed.
    """
    options = SaveOptions.take(kwargs)
    if holds_several(type(model)) and (options.push or options.state_dict is not None):
        what = "push_to_hub" if options.push else "state_dict"
        raise ValueError(f"{what}: {type(model).__name__} holds several models: save them one by one")
    folder = folder_to_save(save_directory)
    weights = folder / weights_name(options.variant)
    if not options.is_main_process:
        return weights
    members = members_of(model, folder)
    states = [_state_of(member, options.state_dict) for member in members.values()]
    for (place, member), (state, metadata) in zip(members.items(), states, strict=True):
        member.save_config(place)
        pack_to_file(state, place / weights.name, metadata=metadata, **options.packing)
    if options.push:
        push_with_card(folder, options.push, [CONFIG, *written_weights(weights)], is_pipeline=False)
    return weights


def _state_of(model: Any, given: Mapping[str, Tensor] | None) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """The state dict, of a quantized model as its quantizer stores it, with what it notes beside it."""
    refuse_adapters(model)
    state = whole_state_dict(model) if given is None else given
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return state, {}
    if not quantizer.is_serializable:
        method = quantizer.quantization_config.quant_method
        raise ValueError(
            f"{type(model).__name__} cannot be saved: its quantizer ({method}) does not support it"
        )
    state, metadata = quantizer.get_state_dict_and_metadata(state, safe_serialization=True)
    return state, {key: value if isinstance(value, str) else str(value) for key, value in metadata.items()}


def push_with_card(folder: Path, options: PushOptions, patterns: Iterable[str], *, is_pipeline: bool) -> None:
    """Push the files of `patterns` with the repository's card, or diffusers' usual one."""
    from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card

    token: Any = options.token  # diffusers' annotation leaves out that it may be a bool

    def write_card(repo_id: str) -> None:
        card = load_or_create_model_card(repo_id, token=token, is_pipeline=is_pipeline)
        populate_model_card(card).save(folder / CARD_NAME)

    push(folder, options, write_card, patterns)


def load_model(
    cls: Any, /, pretrained_model_name_or_path: StrPath | Unpacked, device: Any = None, **kwargs: Any
) -> Any:
    """A model of `cls` from a folder or a repository, in eval mode, on `device` (default: the CPU).

    Keyword arguments: `subfolder`, `variant` and hub options; `dtype` (or `torch_dtype`), which casts as
    diffusers does, modules kept in float32 aside, by default the file's dtypes; `device_map={"": device}`;
    options of `assign_from_file`; `quantization_config`; `ignore_mismatched_sizes=True`, with which the
    module initialises what the file has in other shapes; and values that override the config's. A quantized
    model goes through diffusers' own loader. `output_loading_info=True` returns the model and a dict of the
    missing and the unexpected names; parameters that are missing are then initialised by the module instead
    of refused, unless the options say how strict to be.

    What neither takes has no effect, and a warning names it.

    Raises ValueError for names, shapes or dtypes that do not fit, FlashPackError or ChecksumError for an
    unsound file, FileNotFoundError for a folder without weights, and what huggingface_hub raises.
    """
    if holds_several(cls):
        return _load_several(cls, pretrained_model_name_or_path, device, **kwargs)
    source = pretrained_model_name_or_path
    library = ("ignore_mismatched_sizes", "quantization_config")
    request = LoadRequest.take(cls, source, device, kwargs, [CONFIG], library)
    require_config(request.folder)
    config = cls.load_config(request.folder)
    if "quantization_config" in request.library or config.get("quantization_config") is not None:
        return _load_quantized(cls, request, kwargs)
    build = _builder(cls, config, request.dtype, kwargs)
    expendable = getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or ()
    model, info = build_and_load(build, request, _mend_names, expendable)
    mismatched = [name for name, _, _ in info["mismatched_keys"]]
    _cast(model, request.dtype, [*info["missing_keys"], *mismatched])
    model.register_to_config(_name_or_path=request.source)
    return (model, info) if request.output_loading_info else model


def _builder(
    cls: Any, config: Any, dtype: torch.dtype | None, given: dict[str, Any]
) -> Callable[[FileDtypes], Any]:
    """What makes a model of a configuration and values `given` to override it, for a file's dtypes.

    Warns of those that nothing takes, unless they ask for nothing.
    """
    build_from = initialiser(cls, cls.from_config)
    initialise = cls.__init__ if build_from == cls.from_config else build_from
    named, takes_any = keywords_of(initialise)
    if not takes_any:
        warn_of_unused(asked(given) - named, named | OPTION_NAMES | set(REQUEST_NAMES))
    values = filter_kwargs_for_method(given, initialise)

    def build(stored: FileDtypes) -> Any:
        with _default_dtype(dtype or _main_dtype(cls, stored)):
            return build_from(config, **values)

    return build


def _main_dtype(cls: Any, stored: FileDtypes) -> torch.dtype | None:
    """The floating dtype of most tensors in the file, modules that `cls` keeps in float32 aside, if any."""
    kept = _kept_in_float32(cls)
    floats = {name: dtype for name, dtype in stored.items() if dtype in _PLAIN}
    cast = [dtype for name, dtype in floats.items() if not kept.intersection(name.split("."))]
    counts = Counter(cast or floats.values())
    return max(counts, key=counts.__getitem__, default=None)


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, modules make tensors of `dtype` where they do not say which: buffers that no file holds.

    Nothing changes for None and for dtypes that torch cannot compute in (float8).
    """
    if dtype not in _PLAIN:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _cast(model: nn.Module, dtype: torch.dtype | None, missing: Collection[str] = ()) -> None:
    """Cast what the file held to `dtype`, modules that the class keeps in float32 to that.

    `missing` names what it did not hold. All that is floating becomes float8_e4m3fn, as in diffusers, unless
    something is kept.
    """
    if dtype is None:
        return
    kept = _kept_in_float32(type(model))
    for slot in find_slots(model).values():
        if slot.persistent and slot.tensor.is_floating_point() and slot.name not in missing:
            wanted = torch.float32 if kept.intersection(slot.name.split(".")) else dtype
            slot.tensor.data = slot.tensor.data.to(wanted)
    if dtype == torch.float8_e4m3fn and not kept:
        model.to(dtype)


def _kept_in_float32(cls: Any) -> set[str]:
    """Names of submodules."""
    kept = getattr(cls, "_keep_in_fp32_modules", None) or []
    return {kept} if isinstance(kept, str) else set(kept)


def _mend_names(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Rename what older versions of the class called otherwise, as diffusers does for its own files."""
    mend = getattr(model, "_fix_state_dict_keys_on_load", None)
    if mend is not None:
        mend(tensors)


def _load_several(
    cls: Any,
    source: StrPath | Unpacked,
    device: Any,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    output_loading_info: bool = False,
    **arguments: Any,
) -> Any:
    """A model that holds several, from the folders that `save_model` makes of them."""
    if output_loading_info:
        raise ValueError(f"output_loading_info: {cls.__name__} holds several models; load them one by one")
    if isinstance(source, Unpacked):
        folder = source.folder
    else:
        inside, hub = checked_subfolder(subfolder), HubOptions.take(arguments)
        if is_url(source) and not inside:
            raise ValueError(f"{shown_path(source)}: name the folder of the first model by subfolder=")
        source = pinned(source)
        names = [CONFIG] if is_url(source) else [CONFIG, *weights_patterns(variant)]
        folder = fetch(source, hub, [f"{inside}*/{name}" for name in names]) / inside
        if is_url(source):
            arguments["cache_dir"] = hub.cache_dir
        else:
            find_weights(folder, variant)
    members = []
    for place in itertools.takewhile(lambda place: (place / CONFIG).is_file(), member_folders(folder)):
        member: StrPath | Unpacked = place
        how = {"variant": variant, **arguments}
        if isinstance(source, Unpacked):
            member = replace(source, folder=place)
        elif is_url(source):
            member, how["subfolder"] = source, str(Path(inside).with_name(place.name))
        members.append(load_model(model_class(place), member, device, **how))
    return cls(members)


def _load_quantized(cls: Any, request: LoadRequest, arguments: Mapping[str, Any]) -> Any:
    """Load by way of diffusers' own loader and safetensors."""
    given = {
        "dtype": request.dtype,
        "device_map": None if request.device is None else {"": request.device},
        "output_loading_info": request.output_loading_info,
        **request.library,
        **arguments,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    with as_safetensors(request, "diffusion_pytorch_model.safetensors", CONFIG) as folder, BUILDING:
        loaded = cls.from_pretrained(folder, **chosen)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.register_to_config(_name_or_path=str(request.folder))
    return loaded


def save_weights(model: Any, folder: Path, **options: Any) -> None:
    """Save a model by its library's `save_model`."""
    if is_transformers_model(type(model)):
        from ..transformers._save import save_model as save_transformers_model

        save_transformers_model(model, folder, **options)
    else:
        save_model(model, folder, **options)


def load_weights(cls: type, source: StrPath | Unpacked, device: Any, **arguments: Any) -> Any:
    """A model of `cls` by its library's `load_model`. Raises TypeError for a class that neither can load."""
    if is_transformers_model(cls):
        from ..transformers.model import load_model as load_transformers_model

        return load_transformers_model(cls, source, device, **arguments)
    if is_diffusers_module(cls) or holds_several(cls):
        return load_model(cls, source, device, **arguments)
    shown = source.shown if isinstance(source, Unpacked) else shown_path(os.fspath(source))
    raise TypeError(f"{shown}: {cls.__name__} is neither a transformers model nor a diffusers.ConfigMixin")


class FlashPackDiffusersModelMixin(ModelMixin, FlashPackMixin):
    """Mix into a diffusers model class, before or after it. Class attributes as of `FlashPackMixin`."""

    flashpack_init_method: ClassVar[str | None] = "from_config"

    save_pretrained_flashpack = save_model
    from_pretrained_flashpack = classmethod(load_model)
