"""load_sharded: each rank reads its part of a model by a tensor-parallel plan."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._assign import assign_from_file
from ._dtensors import is_dtensor, load_local, local_of, with_local
from ._footer import get_flashpack_file_metadata, records_of
from ._paths import StrPath, text_path
from ._slots import find_slots

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ParallelStyle

# Names that transformers and diffusers have for torch's styles.
_COLWISE = ("colwise", "colwise_gather_output", "colwise_rep")
_ROWWISE = ("rowwise", "rowwise_split_input", "rowwise_rep")
_EMBEDDING = ("embedding_rowwise",)
# Those of modules whose parameters every rank holds whole; what they add concerns gradients.
_REPLICATED = ("replicated_with_grad_allreduce", "replicate")


def load_sharded(
    target: nn.Module | Mapping[str, Any],
    path: StrPath,
    mesh: DeviceMesh,
    *,
    tp_plan: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    local: bool = False,
    eager: bool | None = None,
    verify: bool | None = None,
) -> dict[str, Tensor]:
    """Load this rank's tensor-parallel part of a file: of every split tensor only that part is read.

    `target` is a model (best on the meta device) or a plan. A model is parallelized over the 1-D `mesh` by
    `tp_plan`, else by the plan that transformers or diffusers gave its class, and filled as by
    `assign_from_file`; its plain tensors are read whole. A plan maps module names, with `*` for a part
    between dots, to "colwise", "rowwise", "colwise_gather_output", "embedding_rowwise" and the other names
    that transformers has for torch's styles, or with a model to torch's ParallelStyle objects.

    Returns the tensors by name: DTensors where they are split, or with `local=True` this rank's plain part.
    `device` defaults to that of the mesh. `eager` and `verify` as in `load_file`.

    Raises ValueError for a plan that names no known style or no module, and what `assign_from_file` raises.
    """
    text = text_path(path)
    on = torch.device(mesh.device_type if device is None else device)
    if isinstance(target, nn.Module):
        _parallelize(target, mesh, _plan_of(target) if tp_plan is None else tp_plan)
        assign_from_file(target, text, on, eager=eager, verify=verify)
        tensors = {name: slot.tensor for name, slot in find_slots(target).items()}
    elif tp_plan is not None:
        raise ValueError("load_sharded was given two plans: as its target and as tp_plan")
    else:
        tensors = _load_by_plan(target, text, mesh, on, eager=eager, verify=verify)
    if not local:
        return tensors
    return {name: local_of(tensor) if is_dtensor(tensor) else tensor for name, tensor in tensors.items()}


def _plan_of(model: nn.Module) -> Mapping[str, Any]:
    """The plan that comes with a model of transformers or diffusers."""
    config = getattr(model, "config", None)
    plans = (
        getattr(model, "tp_plan", None),
        getattr(model, "_tp_plan", None),
        getattr(config, "base_model_tp_plan", None),
    )
    plan: Mapping[str, Any] | None = next((plan for plan in plans if plan), None)
    if plan is None:
        raise ValueError(f"{type(model).__name__} has no tensor-parallel plan of its own: give tp_plan")
    return plan


def _parallelize(model: nn.Module, mesh: DeviceMesh, plan: Mapping[str, Any]) -> None:
    from torch.distributed.tensor.parallel import parallelize_module

    modules = dict(model.named_modules())
    styles = {}
    for pattern, style in plan.items():
        names = [name for name in modules if _matches(name, pattern)]
        if not names:
            raise ValueError(
                f"the tensor-parallel plan names {pattern!r}, which {type(model).__name__} lacks"
            )
        parallel = _torch_style(pattern, style)
        if parallel is not None:
            styles.update(dict.fromkeys(names, parallel))
    for name, style in styles.items():
        parallelize_module(modules[name], mesh, style, src_data_rank=None)


def _torch_style(pattern: str, style: Any) -> ParallelStyle | None:
    """torch's own style of this name; None for whatever is replicated."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

    if isinstance(style, ParallelStyle):
        return style
    if style == "colwise":
        return ColwiseParallel()
    if style in _COLWISE:
        return ColwiseParallel(output_layouts=Replicate())
    if style in _ROWWISE:
        # Of an input that is whole, the module takes its part.
        return RowwiseParallel(input_layouts=Shard(-1) if style == "rowwise" else Replicate())
    if style in _EMBEDDING:
        return RowwiseParallel(input_layouts=Replicate())
    if style in _REPLICATED:
        return None
    raise _unknown(pattern, style)


def _split_dim(pattern: str, style: Any, attribute: str) -> int | None:
    """The dimension of a module's parameter that a style splits; None if every rank has it whole."""
    if style in _COLWISE or style in _EMBEDDING:
        return 0
    if style in _ROWWISE:
        return None if attribute == "bias" else -1
    if style in _REPLICATED:
        return None
    raise _unknown(pattern, style)


def _unknown(pattern: str, style: Any) -> ValueError:
    known = ", ".join((*_COLWISE, *_ROWWISE, *_EMBEDDING, *_REPLICATED))
    return ValueError(f"unknown tensor-parallel style {style!r} for {pattern!r}; expected one of {known}")


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _load_by_plan(
    plan: Mapping[str, Any],
    path: str,
    mesh: DeviceMesh,
    device: torch.device,
    *,
    eager: bool | None,
    verify: bool | None,
) -> dict[str, Tensor]:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    wanted: dict[str, Tensor] = {}
    used = set()
    for name, shape, dtype in records_of(get_flashpack_file_metadata(path)):
        module, _, attribute = name.rpartition(".")
        whole = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        pattern = next((pattern for pattern in plan if _matches(module, pattern)), None)
        if pattern is None:
            wanted[name] = whole
            continue
        used.add(pattern)
        dim = _split_dim(pattern, plan[pattern], attribute)
        placement = Replicate() if dim is None else Shard(dim % max(len(shape), 1))
        wanted[name] = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
    unused = [pattern for pattern in plan if pattern not in used]
    if unused:
        raise ValueError(f"{path}: the tensor-parallel plan names {unused}, of which the file holds nothing")
    loaded = load_local(path, wanted, device, eager=eager, verify=verify, silent=True)
    return {
        name: with_local(tensor, loaded[name]) if is_dtensor(tensor) else loaded[name]
        for name, tensor in wanted.items()
    }
