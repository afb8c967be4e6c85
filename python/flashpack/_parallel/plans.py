"""Tensor-parallel plans: what a style leaves of a parameter to a rank, and models made parallel by a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from .._module.dtensors import is_dtensor
from .._module.slots import Slot, find_slots
from .._ranks.packed import Blocks, Plan, blocks_by, is_colwise, is_packed, matches, note_plan, plan_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ParallelStyle
    from torch.distributed.tensor.placement_types import Placement

# Names that transformers and diffusers have for styles.
_COLWISE = ("colwise", "colwise_gather_output", "colwise_rep")
_ROWWISE = ("rowwise", "rowwise_split_input", "rowwise_rep")
_EMBEDDING = ("embedding_rowwise", "embedding_colwise")
_PACKED = ("packed_colwise", "packed_rowwise")
# Those of modules whose parameters every rank holds whole, or which other rules of the plan split.
_WHOLE = (
    *("replicate", "replicated_with_grad_allreduce", "sequence_parallel", "local_params", "all_reduce"),
    *("mla_kv_a_proj", "moe_tp_experts", "moe_identity_expert"),
)


class Split(NamedTuple):
    """How a parameter is split; `blocks` if each of these is split by itself."""

    placement: Placement
    blocks: Blocks | None = None


class Rule(NamedTuple):
    """What a plan says of a parameter or module."""

    pattern: str
    style: Any

    def split(self, attribute: str, shape: Sequence[int]) -> Split | None:
        """The split of a module's parameter; None if every rank has it whole."""
        from torch.distributed.tensor import Shard
        from torch.distributed.tensor.placement_types import _StridedShard

        dims = len(shape)
        rows = max(dims - 2, 0)  # of several matrices in one tensor, as experts have them, too
        if is_packed(self.style):
            blocks = blocks_by(self.style, attribute, shape, None)
            return None if blocks is None else Split(Shard(blocks.dim), blocks)
        if self.style not in (*_COLWISE, *_ROWWISE, *_EMBEDDING, *_PACKED, *_WHOLE):
            raise self.unknown(_COLWISE + _ROWWISE + _EMBEDDING + _PACKED + _WHOLE)
        by_columns = self.style in (*_ROWWISE, "embedding_colwise", "packed_rowwise")
        if dims == 0 or self.style in _WHOLE or (by_columns and (attribute == "bias" or dims == 1)):
            return None
        dim = dims - 1 if by_columns else rows
        return Split(_StridedShard(dim, split_factor=2) if self.style in _PACKED and dims > 1 else Shard(dim))

    def unknown(self, known: Sequence[str]) -> ValueError:
        """The error that it is none of the `known` styles."""
        return ValueError(
            f"unknown tensor-parallel style {self.style!r} for {self.pattern!r}; "
            f"expected one of {', '.join(known)}"
        )


def unmatched(plan: Plan, names: Iterable[str]) -> list[str]:
    """What the plan names and is not among `names`."""
    known = set(names)
    return [pattern for pattern in plan if not any(matches(name, pattern) for name in known)]


def rule_of(plan: Plan, parameter: str) -> Rule | None:
    """What the plan says of a parameter: by its own name, or by that of its module."""
    module = parameter.rpartition(".")[0]
    for name in (parameter, module):
        for pattern, style in plan.items():
            if matches(name, pattern):
                return Rule(pattern, style)
    return None


def parallelize(model: nn.Module, mesh: DeviceMesh, plan: Plan | None) -> None:
    """Split the model's parameters over `mesh`, and let its modules compute with their parts.

    Without a plan by its own, whose rules may be about layers that this model lacks. Raises ValueError if it
    has none, or for a plan that names no known style or what the model lacks.
    """
    if plan is None:
        plan = plan_of(model)
    else:
        names = [*dict(model.named_modules()), *dict(model.named_parameters(remove_duplicate=False))]
        if unknown := unmatched(plan, names):
            raise ValueError(f"the tensor-parallel plan names {unknown}, which {type(model).__name__} lacks")
    tied = _untie(model)
    if not _by_transformers(model, mesh, plan):
        _by_torch(model, mesh, plan)
    _tie(tied)


def _by_torch(model: nn.Module, mesh: DeviceMesh, plan: Plan) -> None:
    from torch.distributed.tensor.parallel import parallelize_module

    styles = {}
    for pattern, style in plan.items():
        modules = [(name, module) for name, module in model.named_modules() if matches(name, pattern)]
        parallel = _torch_style(Rule(pattern, style))
        if parallel is not None:
            styles.update({name: (module, parallel) for name, module in modules})
    note_plan(model, plan)
    for module, parallel in styles.values():
        parallelize_module(module, mesh, parallel, src_data_rank=None)


def _torch_style(rule: Rule) -> ParallelStyle | None:
    """torch's own style of this name; None for whatever is replicated."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

    style = rule.style
    if isinstance(style, ParallelStyle):
        return style
    if is_packed(style):
        return ColwiseParallel() if is_colwise(style) else RowwiseParallel()
    if style == "colwise":
        return ColwiseParallel()
    if style in _COLWISE:
        return ColwiseParallel(output_layouts=Replicate())
    if style in _ROWWISE:
        # Of an input that is whole, the module takes its part.
        return RowwiseParallel(input_layouts=Shard(-1) if style == "rowwise" else Replicate())
    if style == "embedding_rowwise":
        return RowwiseParallel(input_layouts=Replicate())
    if style == "embedding_colwise":
        return ColwiseParallel(output_layouts=Replicate())
    if style in ("replicate", "replicated_with_grad_allreduce"):
        return None
    raise rule.unknown((*_COLWISE, *_ROWWISE, *_EMBEDDING, "replicate", "replicated_with_grad_allreduce"))


def _by_transformers(model: nn.Module, mesh: DeviceMesh, plan: Plan) -> bool:
    """For a model of transformers: have it do this. False for others, other styles and older releases."""
    if not hasattr(model, "tp_plan") or not all(isinstance(style, str) for style in plan.values()):
        return False
    try:
        from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
        from transformers.distributed.tensor_parallel import apply_tensor_parallelism
    except ImportError:
        return False
    for pattern, style in plan.items():
        if style not in ALL_PARALLEL_STYLES:
            raise Rule(pattern, style).unknown(list(ALL_PARALLEL_STYLES))
    apply_tensor_parallelism(model, mesh, dict(_in_order(model, plan)))
    return True


def _in_order(model: nn.Module, plan: Plan) -> Iterator[tuple[str, Any]]:
    """The styles of a module's parameters, and after these its own."""
    for name, module in model.named_modules():
        for attribute, _ in module.named_parameters(recurse=False):
            parameter = f"{name}.{attribute}" if name else attribute
            if rule := rule_of(plan, parameter):
                yield parameter, rule.style
        for pattern, style in plan.items():
            if matches(name, pattern):
                yield name, style


def _untie(model: nn.Module) -> list[list[Slot]]:
    """Give each name a parameter of its own, as plans speak of names; returns those that were one."""
    groups: dict[int, list[Slot]] = {}
    for slot in find_slots(model).values():
        if slot.is_parameter:
            groups.setdefault(id(slot.tensor), []).append(slot)
    tied = [group for group in groups.values() if len(group) > 1]
    for _, *others in tied:
        for slot in others:
            slot.put(nn.Parameter(slot.tensor.detach(), requires_grad=slot.tensor.requires_grad))
    return tied


def _tie(groups: list[list[Slot]]) -> None:
    """Make those that were one parameter one again, as far as they are split alike."""
    for group in groups:
        alike: dict[Any, nn.Parameter] = {}
        for slot in group:
            parameter: Any = slot.module._parameters[slot.attribute]
            placements = tuple(parameter.placements) if is_dtensor(parameter) else None
            slot.put(alike.setdefault(placements, parameter))
