"""Modules that load in their own way: with hooks, or with a `load_state_dict` or similar of their own.

Such a module rehearses: its load_state_dict is called with the records, and what it holds afterwards says
what its tensors are to be. It gets its own tensors back, and the load goes on as for any other module.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from .._core.names import keywords_of
from .._core.tensors import PLAIN_TYPES, has_own_dispatch, is_uninitialized, rebuild
from .match import IncompatibleKeys, is_same
from .slots import LOADERS, Slot, find_slots

# Those of norms differ only for files of old releases.
_TORCHS_OWN = (
    nn.Module._load_from_state_dict,
    _NormBase._load_from_state_dict,
    _InstanceNorm._load_from_state_dict,
)
# Hooks that change nothing about which record goes where.
_HARMLESS = ("LazyModuleMixin._lazy_load_hook", "FSDPParamGroup._register_state_dict_hooks")


def load_plainly(model: nn.Module, kinds: Iterable[type], hooked: Iterable[nn.Module]) -> bool:
    """Whether the model's modules, of these classes and some with hooks, take the records as they are."""
    if _loads_whole(model) or any(map(_overrides, kinds)):
        return False
    return not any(module._load_state_dict_pre_hooks or _has_own(module) for module in hooked)


def settle_groups(model: nn.Module) -> None:
    """Let fully_shard's groups put their shards back where a load finds them."""
    for module in model.modules():
        for hook in _pre_hooks(module):
            if _name_of(hook).startswith(_HARMLESS[1]):
                hook()


def own_roots(model: nn.Module, records: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The outermost modules that load in their own way, by the prefix of their names."""
    if _loads_whole(model):
        return {"": model}
    return dict(_roots_below(model, "", records))


def loads_flat(model: nn.Module) -> bool:
    """Whether FSDP1 keeps the model's parameters, flattened and divided."""
    if "torch.distributed.fsdp.fully_sharded_data_parallel" not in sys.modules:
        return False
    return any(map(_is_flat, model.modules()))


def told_of(roots: Mapping[str, nn.Module]) -> str:
    """The classes of modules that load in their own way, as the subject of a sentence."""
    kinds = sorted({type(module).__name__ for module in roots.values()})
    return f"{', '.join(kinds)} load" if len(kinds) < 4 else f"{', '.join(kinds[:3])} and others load"


@dataclass
class Rehearsal:
    """What modules have made of the records.

    `tensors`: by names of the model, and by their own names those records that nobody takes. `settled`: names
    of the model for which no record is expected. `missing`: what modules miss beside these and those, and
    whether it is a parameter. `reshaped`: what takes the place of tensors of other shapes. `tied`: slots
    that are to hold another one's tensor, by names of the model.
    """

    tensors: dict[str, Tensor]
    settled: set[str] = field(default_factory=set)
    missing: dict[str, bool] = field(default_factory=dict)
    reshaped: list[tuple[Slot, Tensor]] = field(default_factory=list)
    tied: dict[str, Slot] = field(default_factory=dict)
    _before: list[tuple[nn.Module, dict[str, Any]]] = field(default_factory=list)
    _slots: list[Slot] = field(default_factory=list)
    _trained: list[tuple[Tensor, bool]] = field(default_factory=list)

    def remember(self, root: nn.Module, slots: Iterable[Slot]) -> None:
        """Note what the modules are, for `undo`."""
        for module in root.modules():
            state = vars(module)
            held = {name: dict(state.get(name, {})) for name in ("_parameters", "_buffers", "_modules")}
            self._before.append((module, state | held))
        self._slots += slots

    def take(self, name: str, slot: Slot, made: Tensor, device: torch.device) -> None:
        """Note what a module has made for a slot, `name` in the model."""
        if slot.takes_shape(made.shape):
            self.tensors[name] = made.detach().to(device)
        else:
            self.settled.add(name)
            self.reshaped.append((slot, made))

    def undo(self) -> None:
        """Make the modules what they were before, but for what is in containers of their own."""
        for module, state in self._before:
            vars(module).clear()
            vars(module).update(state)
        for slot in self._slots:
            slot.put(slot.tensor)
        for tensor, requires_grad in reversed(self._trained):
            tensor.requires_grad_(requires_grad)

    def train(self, tensor: Tensor, requires_grad: bool) -> None:
        """Let a parameter require a gradient, or none, until this is undone; integers never do."""
        if requires_grad != tensor.requires_grad and (tensor.is_floating_point() or tensor.is_complex()):
            self._trained.append((tensor, tensor.requires_grad))
            tensor.requires_grad_(requires_grad)

    def finish(self) -> None:
        """Give modules the tensors that they have made of other shapes, or tied."""
        for slot in self.tied.values():
            slot.put(slot.tensor)
        for slot, tensor in self.reshaped:
            slot.put(tensor)


def rehearse(
    roots: Mapping[str, nn.Module],
    records: Mapping[str, Tensor],
    device: torch.device,
    path: str,
    strict: bool,
) -> Rehearsal:
    """Let `roots` load their records. Raises ValueError, and changes nothing, if one refuses.

    `strict`: so is a `load_state_dict` that does not tell which names it misses.
    """
    ordered = sorted(records)
    found = Rehearsal(dict(records))
    try:
        for prefix, module in roots.items():
            first, last = (bisect_left(ordered, prefix + end) for end in ("", chr(0x10FFFF)))
            local = {name[len(prefix) :]: found.tensors.pop(name) for name in ordered[first:last]}
            _rehearse_one(module, prefix, local, found, device, strict)
    except RuntimeError as error:
        found.undo()
        raise ValueError(f"Error while assigning from {path}: {str(error)[:2000]}") from error
    except BaseException:
        found.undo()
        raise
    return found


def _rehearse_one(
    module: nn.Module,
    prefix: str,
    local: dict[str, Tensor],
    found: Rehearsal,
    device: torch.device,
    strict: bool,
) -> None:
    slots = find_slots(module)
    found.remember(module, slots.values())
    whole = not prefix and _loads_whole(module)
    assigns = not whole or _takes(module, "assign")
    lent = _lend(slots.values(), whole)
    before = {key: _state_of(tensor) for key, tensor in lent.items()}
    missing, unexpected = _load_unnoticed(module, local, whole, strict)
    held = _take_back(slots)
    made: dict[str, Tensor] = {}
    for name, now in held.items():
        own, key = slots[name].tensor, id(slots[name].tensor)
        if isinstance(now, nn.Parameter):
            found.train(own, now.requires_grad)
        if not now.is_meta and (now is not lent[key] or _state_of(now) != before[key] or _differs(now, own)):
            made[name] = now
    tied = _tied(slots, held, lent)
    found.tied |= {prefix + name: slot._replace(name=prefix + name) for name, slot in tied.items()}
    for name, slot in (slots | tied).items():
        if name in made:
            found.take(prefix + name, slot, made[name], device)
        elif name not in missing:
            if slot.tensor.is_meta and not assigns:
                raise ValueError(
                    f"{prefix}{name}: {type(module).__name__}.load_state_dict takes no assign=True, so it "
                    "cannot fill tensors on the meta device"
                )
            found.settled.add(prefix + name)
    lacking = _lacking(missing, slots)
    found.missing |= {prefix + name: of for name, of in lacking.items() if name in made or name not in slots}
    for name in unexpected - {name for name in slots if prefix + name in found.tensors}:
        found.tensors[prefix + name] = local.get(name, torch.empty(0))
        found.settled.discard(prefix + name)


def _lend(slots: Collection[Slot], whole: bool) -> dict[int, Tensor]:
    """Put stand-ins in place of the tensors, and return them by the tensors' ids."""
    exposed = {id(slot.tensor) for slot in slots if whole or _loads_itself(slot.module)}
    lent: dict[int, Tensor] = {}
    for slot in slots:
        key = id(slot.tensor)
        if key not in lent:
            lent[key] = _stand_in(slot.tensor, key in exposed)
        slot.put(lent[key])
    return lent


def _take_back(slots: Mapping[str, Slot]) -> dict[str, Tensor]:
    """Put the tensors where they were, and return what modules hold instead."""
    held: dict[str, Tensor] = {}
    for name, slot in slots.items():
        now = (slot.module._parameters if slot.is_parameter else slot.module._buffers).get(slot.attribute)
        if now is not None:
            held[name] = now
    for slot in slots.values():  # not before: a module may have several names
        slot.put(slot.tensor)
    return held


def _tied(
    slots: Mapping[str, Slot], held: Mapping[str, Tensor], lent: Mapping[int, Tensor]
) -> dict[str, Slot]:
    """Slots whose modules hold the parameter of another slot now, with that one's tensor."""
    names_of: dict[int, list[str]] = {}
    for name, now in held.items():
        if isinstance(now, nn.Parameter):
            names_of.setdefault(id(now), []).append(name)
    tied: dict[str, Slot] = {}
    for names in names_of.values():
        at_home = [name for name in names if held[name] is lent[id(slots[name].tensor)]]
        tensor = slots[[*at_home, *names][0]].tensor
        tied |= {n: slots[n]._replace(tensor=tensor) for n in names if slots[n].tensor is not tensor}
    return tied


def _lacking(missing: Collection[str], slots: Mapping[str, Slot]) -> dict[str, bool]:
    """Those of the `missing` names that are tied to none that is there, and whether they are parameters'.

    They may lack the name of the module that a `load_state_dict` has delegated to.
    """
    places: dict[str, list[Slot]] = {}
    filled: set[int] = set()
    for own, slot in slots.items():
        parts = own.split(".")
        endings = [".".join(parts[first:]) for first in range(len(parts))]
        lacked = [name for name in endings if name in missing and (name == own or name not in slots)]
        if lacked:
            places.setdefault(lacked[0], []).append(slot)
        else:
            filled.add(id(slot.tensor))
    return {
        name: not name.endswith("_extra_state") and all(slot.is_parameter for slot in places.get(name, ()))
        for name in sorted(missing)
        if name not in places or any(id(slot.tensor) not in filled for slot in places[name])
    }


def _load_unnoticed(
    module: nn.Module, local: dict[str, Tensor], whole: bool, strict: bool
) -> tuple[set[str], set[str]]:
    """Load without the hooks that follow: they are called when the tensors are in place.

    Returns the names that are missing and unexpected. What a `load_state_dict` does not return, hooks see.
    """
    seen: dict[int, IncompatibleKeys] = {}  # by the lists' ids: one entry per load of torch's
    recorder = {0: lambda _, keys: seen.update({id(keys.missing_keys): keys})}
    hooks = [(vars(each), each._load_state_dict_post_hooks) for each in module.modules()]
    for state, kept in hooks:
        state["_load_state_dict_post_hooks"] = type(kept)(recorder)
    result = _load(module, local, whole, strict=False)
    if not isinstance(result, tuple | list) or len(result) != 2:
        result = _told_by(module, local, list(seen.values()), strict)
    for state, kept in hooks:
        state["_load_state_dict_post_hooks"] = kept
    missing, unexpected = result
    return set(missing), set(unexpected)


def _told_by(
    module: nn.Module, local: dict[str, Tensor], seen: Collection[IncompatibleKeys], strict: bool
) -> tuple[list[str], list[str]]:
    """What a `load_state_dict` that returns no names misses: none if it loads the same with strict=True."""
    missing, unexpected = ([name for keys in seen for name in keys[which]] for which in (0, 1))
    if missing or unexpected or (strict and not seen):
        try:
            _load(module, local, True, strict=True)
        except RuntimeError:
            if not seen:
                raise
        else:
            return [], []
    return missing, unexpected


def _load(module: nn.Module, local: Mapping[str, Tensor], whole: bool, strict: bool) -> Any:
    """load_state_dict with as many of its options as the module takes."""
    if not whole:
        return nn.Module.load_state_dict(module, local, strict=strict, assign=True)
    options: dict[str, Any] = {"strict": strict, "assign": True}
    given = {key: value for key, value in options.items() if _takes(module, key)}
    return module.load_state_dict(dict(local), **given)


def _takes(module: nn.Module, option: str) -> bool:
    named, takes_any = keywords_of(module.load_state_dict)
    return takes_any or option in named


def _stand_in(tensor: Tensor, exposed: bool) -> Tensor:
    """What the module may replace or change instead of its own tensor.

    Parameters show the same memory unless they are `exposed` to code that may write to it, as torch's own
    does not: models are large.
    """
    if is_uninitialized(tensor) or has_own_dispatch(tensor):
        return tensor
    with torch.inference_mode(False), torch.no_grad():
        if not isinstance(tensor, nn.Parameter):
            return tensor.clone() if type(tensor) in PLAIN_TYPES else tensor
        return rebuild(tensor, tensor.clone() if exposed else tensor)


def _state_of(tensor: Tensor) -> tuple[object, ...]:
    """Differs once the tensor has been written to, or given other memory."""
    if is_uninitialized(tensor) or has_own_dispatch(tensor) or tensor.layout is not torch.strided:
        return (id(tensor),)
    version = 0 if tensor.is_inference() else tensor._version
    return version, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _differs(stand_in: Tensor, tensor: Tensor) -> bool:
    """Whether a stand-in was written to through `.data` or numpy, which no state tells."""
    if has_own_dispatch(tensor) or is_uninitialized(tensor) or tensor.is_meta or tensor.is_nested:
        return False
    if tensor.layout is not torch.strided or stand_in.data_ptr() == tensor.data_ptr():
        return False
    one, other = (each.detach().resolve_conj().resolve_neg() for each in (stand_in, tensor))
    return not (torch.equal(one, other) if one.is_quantized else is_same(one, other))


def _roots_below(
    module: nn.Module, prefix: str, records: Mapping[str, Tensor]
) -> Iterator[tuple[str, nn.Module]]:
    if _loads_itself(module) or _lacks_count(module, prefix, records):
        yield prefix, module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _roots_below(child, f"{prefix}{name}.", records)


def _loads_itself(module: nn.Module) -> bool:
    hooks = _pre_hooks(module)
    overrides = _has_own(module) or _overrides(type(module))
    return overrides or not all(_name_of(hook).startswith(_HARMLESS) for hook in hooks)


def _has_own(module: nn.Module) -> bool:
    """Whether the module itself, beside its class, has a method of loading."""
    return not vars(module).keys().isdisjoint(LOADERS)


def _loads_whole(model: nn.Module) -> bool:
    """Whether the model overrides `load_state_dict`. torch does not call that of a submodule."""
    own = getattr(type(model), "load_state_dict", None)
    return "load_state_dict" in vars(model) or own is not nn.Module.load_state_dict


def _overrides(kind: type) -> bool:
    return (
        getattr(kind, "_load_from_state_dict", _TORCHS_OWN[0]) not in _TORCHS_OWN
        or getattr(kind, "set_extra_state", None) is not nn.Module.set_extra_state
        or kind.__module__ == "torch.distributed.fsdp.fully_sharded_data_parallel"
    )


def _is_flat(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.distributed.fsdp.fully_sharded_data_parallel"


def _pre_hooks(module: nn.Module) -> list[Any]:
    hooks: Mapping[int, Any] = getattr(module, "_load_state_dict_pre_hooks", {})
    return [getattr(hook, "hook", hook) for hook in hooks.values()]


def _name_of(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", ""))


def _lacks_count(module: nn.Module, prefix: str, records: Mapping[str, Tensor]) -> bool:
    """Whether it is a batch norm in a file from before they counted batches."""
    return (
        isinstance(module, _NormBase)
        and module._buffers.get("num_batches_tracked") is not None
        and f"{prefix}num_batches_tracked" not in records
    )
