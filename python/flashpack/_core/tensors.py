"""What counts as a plain tensor, and how a parameter is made anew around other data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .names import is_utf8
from .native import dtypes

# Whose bytes are as they seem: no subclass has a say.
PLAIN_TYPES = (Tensor, nn.Parameter)


def has_own_dispatch(tensor: Tensor) -> bool:
    """True for subclasses that compute in Python (DTensor, fake or quantized wrappers): no plain bytes."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def is_uninitialized(tensor: Tensor) -> bool:
    """True for the parameters and buffers of lazy modules, which have no shape yet."""
    return type(tensor) not in PLAIN_TYPES and is_lazy(tensor)


def packable(name: object, value: Any) -> Tensor:
    """`value` as a plain tensor with data. Raises ValueError naming it and the reason otherwise."""
    if not isinstance(name, str):
        raise ValueError(f"tensor names must be strings, not {name!r}")
    if not is_utf8(name):
        raise ValueError(f"tensor names must be UTF-8 text, not {name!r}")
    if name.rpartition(".")[2] == "_extra_state":  # even as a tensor: nothing in a model would take it back
        raise ValueError(
            f"{name!r} is extra state ({type(value).__name__}): FlashPack stores parameters and buffers "
            "only; pack a state dict without it"
        )
    if not isinstance(value, Tensor):
        raise ValueError(f"{name!r} is a {type(value).__name__}, not a tensor: FlashPack stores tensors only")
    reason = _unpackable(value)
    if reason is not None:
        raise ValueError(f"{name!r} cannot be packed: {reason}")
    plain = value if type(value) in PLAIN_TYPES else value.as_subclass(Tensor)
    return plain.resolve_conj().resolve_neg()  # the tensor itself unless it is such a view


def _unpackable(tensor: Tensor) -> str | None:
    """Why the tensor's bytes cannot be read as they are; None when they can."""
    if is_uninitialized(tensor):
        return "it is not initialized yet (lazy module)"
    if has_own_dispatch(tensor):
        return f"it is a {type(tensor).__name__}, a tensor subclass without plain data"
    if tensor.is_nested:
        return "it is a nested tensor"
    if tensor.is_quantized:
        return f"it is quantized ({tensor.dtype})"
    if str(tensor.dtype).removeprefix("torch.") not in dtypes():
        return f"Unsupported dtype {tensor.dtype}"
    if tensor.layout is not torch.strided:
        return f"its layout is {tensor.layout}, not dense: call to_dense() first"
    if tensor.is_meta:
        return "it is on the meta device and has no data: load or initialize it first"
    if tensor.numel() and not tensor.untyped_storage().nbytes():
        return "its storage was freed"
    return None


def rebuild(old: nn.Parameter, data: Tensor) -> nn.Parameter:
    """A parameter of `old`'s class, requires_grad and attributes around `data`."""
    kind = nn.Parameter if is_uninitialized(old) else type(old)
    new: nn.Parameter = Tensor._make_subclass(kind, data.detach(), old.requires_grad)
    new.__dict__.update(old.__dict__)
    return new


def swapped(old: nn.Parameter, new: nn.Parameter) -> bool:
    """Make each of the two what the other was; False if weak references or a graph hold on to one."""
    swap: Callable[[Tensor, Tensor], None] = torch.utils.swap_tensors
    try:
        swap(old, new)
    except RuntimeError:
        return False
    return True


def is_on(tensor: Tensor, device: torch.device) -> bool:
    """Whether the tensor is on `device`, of which any will do if it has no index."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def bump_versions(tensors: Sequence[Tensor]) -> None:
    """As load_state_dict: a backward pass that saved the old values must notice that they are gone."""
    torch.autograd.graph.increment_version(tensors)  # inference tensors have none and are passed over


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """accelerate's hooks of a module, of which one may hold several."""
    waiting = [vars(module).get("_hf_hook")]
    while waiting:
        if (hook := waiting.pop()) is not None:
            yield hook
            waiting.extend(getattr(hook, "hooks", ()))


def has_memory(tensor: Tensor) -> bool:
    """Whether the tensor has elements that lie in memory as its strides say."""
    if is_uninitialized(tensor) or has_own_dispatch(tensor):
        return False
    is_strided = tensor.layout is torch.strided and not tensor.is_nested
    return is_strided and not tensor.is_meta and tensor.numel() > 0 and tensor.data_ptr() != 0


def shown_memory(tensor: Tensor) -> Hashable:
    """Equal for tensors that show the same elements; of contiguous ones the shape does not matter.

    Tensors without elements, or without plain memory for them, equal only themselves.
    """
    if not has_memory(tensor):
        return id(tensor)
    layout = (tensor.numel(),) if tensor.is_contiguous() else (tensor.shape, tensor.stride())
    return (tensor.data_ptr(), tensor.dtype, tensor.is_conj(), tensor.is_neg(), layout)
