"""Packed projections: several matrices in one, of each of which a tensor-parallel rank holds a part.

diffusers says so by styles of its own (PackedColwiseParallel, PackedRowwiseParallel), and has the parts of a
rank one after another in a DTensor that claims to be a plain shard. So the parts are noted on the module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

Plan = Mapping[str, Any]

_COLWISE, _ROWWISE = "PackedColwiseParallel", "PackedRowwiseParallel"
_NOTE = "_flashpack_packed"  # on a module: the blocks of its parameters
# Where a module says what a style leaves open.
_OWN_BLOCKS = {_COLWISE: "_tp_packed_col_blocks", _ROWWISE: "_tp_packed_row_blocks"}


class Blocks(NamedTuple):
    """The sizes of what is packed along dimension `dim`."""

    dim: int
    sizes: tuple[int, ...]

    def runs(self, rank: int, ranks: int) -> list[tuple[int, int]]:
        """The indices that a rank holds: its part of each block. Raises ValueError for uneven parts."""
        uneven = [size for size in self.sizes if size % ranks]
        if uneven:
            raise ValueError(
                f"a packed projection has a block of {uneven[0]}, not a multiple of {ranks} ranks"
            )
        starts = accumulate((0, *self.sizes[:-1]))
        parts = ((start, size // ranks) for start, size in zip(starts, self.sizes, strict=True))
        return [(start + rank * part, start + (rank + 1) * part) for start, part in parts]


def is_packed(style: Any) -> bool:
    """Whether it is one of diffusers' styles for packed projections."""
    return type(style).__name__ in _OWN_BLOCKS


def is_colwise(style: Any) -> bool:
    """Of these: whether it splits what comes out of the projection, else what goes in."""
    return type(style).__name__ == _COLWISE


def blocks_by(style: Any, attribute: str, shape: Sequence[int], module: nn.Module | None) -> Blocks | None:
    """The blocks of a module's parameter; None if every rank has it whole.

    Raises ValueError if neither the style nor the module tells them, or they do not make up the shape.
    """
    if not is_colwise(style) and attribute == "bias":
        return None
    own = _OWN_BLOCKS[type(style).__name__]
    shares = style.blocks or getattr(module, own, None)
    if not shares:
        raise ValueError(f"{type(style).__name__} without blocks, and no module whose {own} tells them")
    dim = 0 if is_colwise(style) else 1
    unit, rest = divmod(shape[dim], sum(shares))
    if rest:
        raise ValueError(f"blocks of {shares} do not make up {shape[dim]}")
    return Blocks(dim, tuple(share * unit for share in shares))


def noted_blocks(module: nn.Module, attribute: str) -> Blocks | None:
    """The blocks of a parameter, if it is packed."""
    noted: dict[str, Blocks] = getattr(module, _NOTE, {})
    return noted.get(attribute)


def plan_of(model: nn.Module) -> Plan:
    """The plan that comes with a model of transformers or diffusers. Raises ValueError if there is none."""
    config = getattr(model, "config", None)
    plans = (
        getattr(model, "tp_plan", None),
        getattr(model, "_tp_plan", None),
        getattr(config, "base_model_tp_plan", None),
    )
    plan: Plan | None = next((plan for plan in plans if plan), None)
    if plan is None:
        raise ValueError(f"{type(model).__name__} has no tensor-parallel plan of its own: give tp_plan")
    return plan


def matches(name: str, pattern: str) -> bool:
    """Whether a plan's pattern is for this name."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def note_own_blocks(model: nn.Module) -> None:
    """Note what is packed in a model that diffusers itself has split over ranks."""
    parallel = getattr(getattr(model, "_parallel_config", None), "tensor_parallel_config", None)
    if parallel is not None:
        note_plan(model, plan_of(model))


def note_plan(model: nn.Module, plan: Plan) -> None:
    """Note the blocks of what the plan has as packed."""
    packed = {pattern: style for pattern, style in plan.items() if is_packed(style)}
    for name, module in model.named_modules():
        for pattern, style in packed.items():
            if matches(name, pattern):
                named = module.named_parameters(recurse=False)
                blocks = {name: blocks_by(style, name, tensor.shape, module) for name, tensor in named}
                setattr(module, _NOTE, {name: each for name, each in blocks.items() if each is not None})
