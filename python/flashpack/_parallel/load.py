"""load_sharded: each rank reads its part of a model by a tensor-parallel plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._core.names import warn
from .._core.paths import has_url
from .._files.opened import OpenModel
from .._files.sources import ModelPath, model_path, resolved_path
from .._load.load import as_device, described
from .._module.assign import assign_from_file
from .._module.dtensors import is_dtensor, load_local, local_of, with_local
from .._module.slots import find_slots
from .._ranks.group import portable
from .._ranks.packed import Blocks, Plan
from .plans import parallelize, rule_of, unmatched

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def load_sharded(
    target: nn.Module | Mapping[str, Any],
    path: ModelPath,
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
    `assign_from_file`; its plain tensors are read whole. A plan maps names of modules or parameters, with
    `*` for a part between dots, to "colwise", "rowwise", "packed_colwise", "embedding_rowwise" and the other
    names that transformers has, or to diffusers' styles for packed projections, or with a model to torch's
    ParallelStyle objects. transformers itself parallelizes its models, torch all others.

    Returns the tensors by name: DTensors where they are split, or with `local=True` this rank's plain part.
    The part of a diffusers' packed projection is made of parts of each of its blocks: what is local is
    right, and computes right; `full_tensor()` gives the blocks in the order of the ranks, as diffusers' own.
    `device` defaults to that of the mesh. `path`, `eager` and `verify` as in `load_file`.

    Raises ValueError for a plan that names no known style or no module (a rule that the file has nothing for
    is a warning), or blocks that the ranks cannot share evenly, and what `assign_from_file` raises.
    """
    on = as_device(mesh.device_type if device is None else device)
    path = _agreed(path, mesh)
    if isinstance(target, nn.Module):
        parallelize(target, mesh, tp_plan)
        assign_from_file(target, path, on, eager=eager, verify=verify)
        tensors = {name: slot.tensor for name, slot in find_slots(target).items()}
    elif tp_plan is not None:
        raise ValueError("load_sharded was given two plans: as its target and as tp_plan")
    else:
        tensors = _load_by_plan(target, OpenModel(model_path(path)), mesh, on, eager=eager, verify=verify)
    if not local:
        return tensors
    return {name: local_of(tensor) if is_dtensor(tensor) else tensor for name, tensor in tensors.items()}


def _agreed(path: ModelPath, mesh: DeviceMesh) -> ModelPath:
    """`path`; of a URL that of the version which the first rank of the mesh finds there."""
    if not has_url(model_path(path)):
        return path
    import torch.distributed as dist

    answers: list[str | BaseException | None] = [None] * mesh.size()
    dist.all_gather_object(answers, _resolved(path) if mesh.get_local_rank() == 0 else None, mesh.get_group())
    found = answers[0]
    if isinstance(found, BaseException):
        raise found
    assert found is not None
    return found


def _resolved(path: ModelPath) -> str | BaseException:
    """`resolved_path`, or the error of it, for ranks that wait for either."""
    try:
        return resolved_path(path)
    except Exception as error:  # noqa: BLE001 (raised on all ranks)
        return portable(error)


def _load_by_plan(
    plan: Plan,
    weights: OpenModel,
    mesh: DeviceMesh,
    device: torch.device,
    *,
    eager: bool | None,
    verify: bool | None,
) -> dict[str, Tensor]:
    from torch.distributed.tensor import Replicate, distribute_tensor

    wanted: dict[str, Tensor] = {}
    packed: dict[str, Blocks] = {}
    wholes = described(weights.footer, {})
    unknown = unmatched(plan, [*wholes, *(name.rpartition(".")[0] for name in wholes)])
    if len(unknown) == len(plan):
        raise ValueError(f"{weights.shown}: the file holds nothing that the tensor-parallel plan names")
    if unknown:  # a library's plan has rules for layers that not every model has
        warn(f"{weights.shown} holds nothing of the plan's {unknown}")
    for name, whole in wholes.items():
        rule = rule_of(plan, name)
        if rule is None:
            wanted[name] = whole
            continue
        split = rule.split(name.rpartition(".")[2], whole.shape)
        placement = split.placement if split else Replicate()
        wanted[name] = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
        if split and split.blocks:
            packed[name] = split.blocks
    loaded = load_local(weights, wanted, device, packed=packed, eager=eager, verify=verify)
    return {
        name: with_local(tensor, loaded[name]) if is_dtensor(tensor) else loaded[name]
        for name, tensor in wanted.items()
    }
