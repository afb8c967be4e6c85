"""The places of a model that a tensor can go to, looked up once per load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._core.tensors import has_own_dispatch, is_uninitialized
from .._ranks.packed import Blocks, noted_blocks
from .dtensors import holds_elements, is_dtensor

# What load_state_dict of a model calls of each module, which may have its own, beside its class.
LOADERS = ("_load_from_state_dict", "set_extra_state")


class Slot(NamedTuple):
    """One name of the model: `module`'s parameter or buffer `attribute`, now holding `tensor`."""

    name: str
    module: nn.Module
    attribute: str
    tensor: Tensor
    is_parameter: bool

    @property
    def persistent(self) -> bool:
        """Whether state dicts hold it: parameters and most buffers."""
        return self.attribute not in self.module._non_persistent_buffers_set

    @property
    def blocks(self) -> Blocks | None:
        """The blocks of a packed projection, of each of which a rank holds a part."""
        return noted_blocks(self.module, self.attribute)

    def takes_shape(self, shape: torch.Size) -> bool:
        """Whether a record may have this shape; a lazy module's tensor takes any."""
        return is_uninitialized(self.tensor) or self.tensor.shape == shape

    @property
    def is_opaque(self) -> bool:
        """Whether it is a subclass whose storage cannot be replaced; that of a DTensor can be filled."""
        if is_dtensor(self.tensor):
            return not holds_elements(self.tensor)
        return has_own_dispatch(self.tensor)

    def put(self, tensor: Tensor) -> None:
        """Hold `tensor` from now on; a class with a `__setattr__` of its own, as nn.RNNBase, learns of it.

        nn.Module's is passed by: its checks were made before, and it takes ten times as long.
        """
        if type(self.module).__setattr__ is not nn.Module.__setattr__:
            setattr(self.module, self.attribute, tensor)
        elif self.is_parameter:
            self.module._parameters[self.attribute] = cast(nn.Parameter, tensor)
        else:
            self.module._buffers[self.attribute] = tensor


def find_slots(model: nn.Module) -> dict[str, Slot]:
    """Every parameter and buffer of `model` by name, tied ones under each of their names."""
    slots: dict[str, Slot] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for held, is_parameter in ((module._parameters, True), (module._buffers, False)):
            for attribute, tensor in held.items():
                if tensor is not None:
                    name = prefix + attribute
                    slots[name] = Slot(name, module, attribute, tensor, is_parameter)
    return slots


class Tensors(NamedTuple):
    """What state dicts hold, the buffers that they do not, and what tells whether the modules load in their
    own way: their classes, and those with hooks or methods of loading of their own, children first."""

    names: list[str]
    tensors: list[Tensor]
    unsaved: list[Tensor]
    kinds: set[type[nn.Module]]
    hooked: list[nn.Module]


def find_tensors(model: nn.Module) -> Tensors:
    """Names and tensors of what the slots hold that state dicts hold, too, at a fifth of their time."""
    found = Tensors([], [], [], set(), [])
    _add_tensors(model, "", found)
    return found


def _add_tensors(owner: nn.Module, prefix: str, found: Tensors) -> None:  # noqa: C901 (each call costs)
    # From a module's __dict__, as nn.Module's __getattr__ slows every other access down. Most hold nothing in
    # two of the three: to ask first is cheaper than to iterate over nothing.
    module = vars(owner)
    names, tensors, unsaved, kinds, hooked = found
    kinds.add(type(owner))
    if parameters := module["_parameters"]:
        for attribute, parameter in parameters.items():
            if parameter is not None:
                names.append(prefix + attribute)
                tensors.append(parameter)
    if buffers := module["_buffers"]:
        skipped = module["_non_persistent_buffers_set"]
        for attribute, buffer in buffers.items():
            if buffer is None:
                continue
            if attribute in skipped:
                unsaved.append(buffer)
            else:
                names.append(prefix + attribute)
                tensors.append(buffer)
    if modules := module["_modules"]:
        for name, child in modules.items():
            if child is not None:
                _add_tensors(child, f"{prefix}{name}.", found)
    if (
        module["_load_state_dict_post_hooks"]
        or module["_load_state_dict_pre_hooks"]
        or not module.keys().isdisjoint(LOADERS)
    ):
        hooked.append(owner)


def call_post_hooks(modules: Iterable[nn.Module], incompatible: Any) -> None:
    """Tell the modules that their weights have changed."""
    for module in modules:
        for hook in getattr(module, "_load_state_dict_post_hooks", {}).values():
            hook(module, incompatible)


def children_first(module: nn.Module) -> Iterator[nn.Module]:
    """All modules, in the order in which load_state_dict calls their hooks."""
    for child in module._modules.values():
        if child is not None:
            yield from children_first(child)
    yield module
