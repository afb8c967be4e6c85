"""Which classes a pipeline's components have: what model_index.json says, and what the pipeline asks for."""

from __future__ import annotations

import errno
import importlib
import inspect
import itertools
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import diffusers
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from ..._files.folder import CONFIG, require_config

# What a file may have imported: a module of any other name would run whatever goes by that name here.
LIBRARIES = ("diffusers", "transformers")
_SEVERAL = (("controlnets",), ("adapters",))  # the arguments of classes that hold several models
PREFIX = "FlashPack"  # of the classes that 0.4.5 derived from others as it loaded them


class Entry(NamedTuple):
    """Where a class is, as model_index.json or a configuration says."""

    library: str
    name: str


def unwrapped(component: Any) -> Any:
    """The module that torch.compile wrapped, or the component itself."""
    return getattr(component, "_orig_mod", component)


def is_transformers_model(cls: type) -> bool:
    """Whether `cls` is a transformers model; the library is not imported to find out."""
    library = sys.modules.get("transformers")
    return library is not None and issubclass(cls, library.PreTrainedModel)


def is_diffusers_module(cls: type) -> bool:
    """Whether `cls` is a module that diffusers' configs build: every ModelMixin, and others."""
    return issubclass(cls, nn.Module) and issubclass(cls, ConfigMixin)


def holds_several(cls: type) -> bool:
    """Whether models of `cls` are made of several others and have no config, as MultiControlNetModel."""
    return issubclass(cls, diffusers.ModelMixin) and tuple(inspect.signature(cls).parameters) in _SEVERAL


def member_folders(folder: Path) -> Iterator[Path]:
    """Where diffusers saves the models that one class holds: `folder`, then `folder`_1, `folder`_2, ..."""
    yield folder
    for number in itertools.count(1):
        yield folder.with_name(f"{folder.name}_{number}")


def members_of(model: Any, folder: Path) -> dict[Path, Any]:
    """The models to save for `model`, itself or those that it holds, by their folders.

    Raises FileExistsError where a load would take what is there for one more of them.
    """
    if not holds_several(type(model)):
        return {folder: model}
    (members,) = model.children()
    folders = member_folders(folder)
    found = {next(folders): unwrapped(member) for member in members}
    if (following := next(folders)).exists():
        raise FileExistsError(
            errno.EEXIST,
            f"a load would take this for one more of the {len(found)} models: remove it first",
            str(following),
        )
    return found


def exact_class(library: str, name: str) -> type | None:
    """The class `name` of a module, theirs or imported already, or of the diffusers pipeline of that name."""
    found = getattr(_module(library), name, None)
    return found if isinstance(found, type) else None


def saved_class(entry: Entry) -> type | None:
    """The class that was saved as `entry`, or the one it was derived from, if there is one."""
    original = entry.name.removeprefix(PREFIX)
    homes = (entry, (entry.library, original), ("diffusers", original), ("transformers", original))
    return next((found for home in homes if (found := exact_class(*home)) is not None), None)


def named_class(folder: Path) -> Entry:
    """The library and the class that the configuration in `folder` names. Raises ValueError for none."""
    config = require_config(folder)
    if isinstance(config.get("_class_name"), str):
        return Entry("diffusers", config["_class_name"])
    if config.get("architectures"):
        return Entry("transformers", config["architectures"][0])
    raise ValueError(f"{folder}: {CONFIG} names no class (_class_name or architectures)")


def model_class(folder: Path, entry: Entry | None = None) -> Any:
    """The class of the model in `folder`, as `entry` says or the configuration there.

    Raises ValueError when there is none.
    """
    entry = entry or named_class(folder)
    found = saved_class(entry)
    if found is None:
        raise ValueError(f"{folder}: the class {entry.name!r} is not in {entry.library!r}")
    return found


def component_class(shown: str, component: str, entry: Entry, hints: Mapping[str, tuple[type, ...]]) -> type:
    """The class to load: the one the pipeline asks for, where it can stand in for the one that was saved.

    Raises ValueError when there is neither; `shown` is what the component was to be loaded from.
    """
    library, name = entry.library, entry.name
    saved = saved_class(entry)
    for hint in hints.get(component, ()):
        same_name = hint.__name__.removeprefix(PREFIX) == name.removeprefix(PREFIX)
        if issubclass(hint, saved) if saved is not None else same_name:
            return hint
    if saved is None:
        raise ValueError(
            f"{shown}: the class {name!r} of the component {component!r} is not in {library!r}, or that "
            f"is not imported yet: import it, or pass the component as {component}=..."
        )
    return saved


def class_hints(pipeline_class: type) -> dict[str, tuple[type, ...]]:
    """The classes that each argument of the pipeline's initialiser is annotated with."""
    initialiser: Any = inspect.unwrap(pipeline_class.__init__)  # type: ignore[misc]
    try:
        annotations: Mapping[str, Any] = typing.get_type_hints(initialiser)
    except (AttributeError, NameError, TypeError):  # annotations are free to name what is not there
        annotations = initialiser.__annotations__
    return {name: _classes_of(annotation) for name, annotation in annotations.items()}


def pipeline_class(name: Any) -> Any:
    """The pipeline class of that name. Raises ValueError for one that diffusers does not have."""
    if not isinstance(name, str):  # [module of the repository, class]: diffusers finds it
        return diffusers.DiffusionPipeline
    for candidate in (name, name.removeprefix(PREFIX)):
        found = getattr(diffusers, candidate, None)
        if isinstance(found, type):
            return found
    raise ValueError(
        f"model_index.json names the pipeline {name!r}, which diffusers {diffusers.__version__} does not "
        "have: call from_pretrained_flashpack on that class"
    )


def _classes_of(annotation: Any) -> tuple[type, ...]:
    choices = typing.get_args(annotation) or (annotation,)
    return tuple(choice for choice in choices if inspect.isclass(choice) and choice is not type(None))


def _module(library: str) -> ModuleType | None:
    own = getattr(diffusers.pipelines, library, None)
    if isinstance(own, ModuleType):
        return own
    if library.partition(".")[0] not in LIBRARIES:
        return sys.modules.get(library)
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{library}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something itself
        return None
