"""The places of a model that a tensor can go to, looked up once per load."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ._dtensors import holds_elements, is_dtensor
from ._packed import Blocks, noted_blocks
from ._tensors import has_own_dispatch, is_uninitialized


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
        """Hold `tensor` from now on. Past nn.Module's __setattr__, whose checks were made before."""
        if self.is_parameter:
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
