"""Auto classes that load FlashPack files: transformers' own once patched, and subclasses without a patch."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ..._core.paths import StrPath
from ..._load.load import Device
from .._build import BUILDING
from .._request import add_switch
from ._config import architectures_in, generation_settings, read_config, take_request
from ._save import save_model
from .model import load_from, load_model


def load_auto(
    auto_class: Any,
    /,
    pretrained_model_name_or_path: StrPath,
    device: Device | None = None,
    *model_args: Any,
    trust_remote_code: bool | None = None,
    code_revision: str | None = None,
    **kwargs: Any,
) -> Any:
    """`load_model` for the class that `auto_class` takes for the configuration, remote code included."""
    request = take_request(PreTrainedModel, pretrained_model_name_or_path, device, kwargs)
    code = {"trust_remote_code": trust_remote_code, "code_revision": code_revision}
    code = {name: value for name, value in code.items() if value is not None}
    if not isinstance(kwargs.get("config"), PretrainedConfig):
        kwargs.update(code)
    config, rest = read_config(AutoConfig, request, kwargs)
    for name in code:
        rest.pop(name, None)
    config.architectures = architectures_in(config) or None
    cls, config = _choose(auto_class, config, request.folder, code)
    config.name_or_path = request.source
    return load_from(cls, config, request, model_args, rest, generation_settings(rest))


def _choose(
    auto_class: Any, config: Any, folder: Path, code: dict[str, Any]
) -> tuple[type[PreTrainedModel], Any]:
    """The class, and which part of the configuration is its own: seen on a model without memory."""
    probed = copy.deepcopy(config)
    probed.name_or_path = os.fspath(folder)  # where remote code is looked for
    with BUILDING, torch.device("meta"):
        model = auto_class.from_config(probed, **code)
    own = config if isinstance(config, type(model.config)) else config.get_text_config()
    return type(model), own


@functools.cache
def auto_class_named(name: str) -> Any:
    """A subclass of transformers' auto class of this name, with `from_pretrained_flashpack`.

    Raises AttributeError if transformers has none.
    """
    base = getattr(transformers, name)
    members = {
        "from_pretrained_flashpack": classmethod(load_auto),
        "__doc__": base.__doc__,
        "__module__": __package__,
    }
    return type(name, (base,), members)


def patch_transformers_auto_model() -> None:
    """Give transformers' auto classes `from_pretrained_flashpack`, and its models that and the save.

    `from_pretrained` of all of them takes `use_flashpack=True` for the same. Ordinary loads and saves go on
    as ever. Calling it again does nothing.
    """
    base: Any = transformers.AutoModel.__mro__[-2]  # what all of the auto classes derive from
    models: Any = PreTrainedModel
    base.from_pretrained_flashpack = classmethod(load_auto)
    models.from_pretrained_flashpack = classmethod(load_model)
    models.save_pretrained_flashpack = save_model
    for cls in _family(base):
        add_switch(cls, load_auto)
    add_switch(models, load_model)


patch_auto_factory = patch_transformers_auto_model  # 0.4.5's name


def _family(cls: type[Any]) -> Iterator[type[Any]]:
    """The class and all that derive from it: most auto classes have a `from_pretrained` of their own."""
    yield cls
    for each in cls.__subclasses__():
        yield from _family(each)
