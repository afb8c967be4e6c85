"""DTensors: which part of a file's tensor a rank holds, and how that part gets into a model."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from .._core.ops import Slice
from .._files.opened import OpenModel
from .._load.load import Reading, load_list
from .._ranks.packed import Blocks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement
    from typing_extensions import Unpack

Runs = list[tuple[int, int]]


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor. Imports nothing: where their module is not loaded there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def holds_elements(tensor: DTensor) -> bool:
    """Whether a rank's part is a part of the tensor; of a sum that is still to be made it is not."""
    return not any(placement.is_partial() for placement in tensor.placements)


def load_local(
    weights: OpenModel,
    wanted: Mapping[str, Tensor],
    device: torch.device,
    *,
    packed: Mapping[str, Blocks],
    **reading: Unpack[Reading],
) -> dict[str, Tensor]:
    """For each DTensor in `wanted` this rank's part of the record of that name, for others the whole.

    Only what the parts need is read. `weights` holds records of these names and global shapes. `packed` are
    those of which a rank holds a part of each block.
    """
    names: list[str] = []
    slices: list[Slice] = []
    layouts: dict[str, list[Runs]] = {}
    for name, tensor in wanted.items():
        layouts[name] = layout = _runs(tensor, packed.get(name)) if is_dtensor(tensor) else []
        for piece in itertools.product(*layout):
            slices += [
                Slice(len(names), dim, start, stop)
                for dim, (start, stop) in enumerate(piece)
                if (start, stop) != (0, tensor.shape[dim])
            ]
            names.append(name)
    pieces = iter(load_list(weights, names, device, slices=slices, **reading))
    return {name: _assemble([len(runs) for runs in layout], pieces) for name, layout in layouts.items()}


def _assemble(counts: Sequence[int], pieces: Iterable[Tensor]) -> Tensor:
    """The part made of its pieces, `counts` along each dimension, the last changing first."""
    parts = list(itertools.islice(pieces, torch.Size(counts).numel()))
    for dim in reversed(range(len(counts))):
        if counts[dim] > 1:
            groups = [parts[first : first + counts[dim]] for first in range(0, len(parts), counts[dim])]
            parts = [torch.cat(group, dim) for group in groups]
    return parts[0]


def _runs(tensor: DTensor, blocks: Blocks | None) -> list[Runs]:
    """The indices of each dimension that this rank holds, as runs of consecutive ones."""
    if not holds_elements(tensor):
        raise ValueError("a DTensor with partial sums has no part of its own")
    mesh, shape = tensor.device_mesh, tuple(tensor.shape)
    runs = [_runs_of_dim(mesh, tensor.placements, shape, dim) for dim in range(tensor.dim())]
    if blocks is not None:
        if mesh.ndim > 1:
            raise ValueError("a packed projection is read for one dimension of a mesh, not for several")
        runs[blocks.dim] = blocks.runs(mesh.get_local_rank(), mesh.size())
    return runs


def _runs_of_dim(mesh: DeviceMesh, placements: Sequence[Placement], shape: Sequence[int], dim: int) -> Runs:
    from torch.distributed.tensor import Shard

    splits = [
        (axis, placement)
        for axis, placement in enumerate(placements)
        if getattr(placement, "dim", None) in (dim, dim - len(shape))
    ]
    if any(type(placement) is not Shard for _, placement in splits):  # a subclass of it in some releases
        return _listed_runs(mesh, dict(splits), shape, dim)
    start, stop = 0, shape[dim]
    for axis, _ in splits:  # as torch.chunk
        chunk = -(-(stop - start) // mesh.size(axis))
        start = min(start + chunk * mesh.get_local_rank(axis), stop)
        stop = min(start + chunk, stop)
    return [(start, stop)]


def _listed_runs(mesh: DeviceMesh, splits: Mapping[int, Placement], shape: Sequence[int], dim: int) -> Runs:
    """Of strided shards, which only torch itself knows how to nest."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    ours = [splits.get(axis, Replicate()) for axis in range(mesh.ndim)]
    along = [-1 if each == dim else 1 for each in range(len(shape))]
    numbers = torch.arange(shape[dim], dtype=torch.int32).view(along)
    held = distribute_tensor(numbers, mesh, ours, src_data_rank=None).to_local().flatten().tolist()
    runs: Runs = []
    for index in held:
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs or [(0, 0)]


def with_local(old: DTensor, local: Tensor) -> DTensor:
    """A DTensor placed as `old` is, whose part on this rank is `local`."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        old.device_mesh,
        old.placements,
        run_check=False,
        shape=old.shape,
        stride=torch.empty(old.shape, device="meta").stride(),
    )


def rebuild(old: DTensor, local: Tensor) -> Tensor:
    """The parameter or buffer `old` made anew around `local`."""
    new = with_local(old, local)
    if not isinstance(old, nn.Parameter):
        return new
    parameter: Any = nn.Parameter(new, requires_grad=old.requires_grad)
    return parameter  # type: ignore[no-any-return]


def local_of(tensor: DTensor) -> Tensor:
    """The memory of this rank's part."""
    local: Tensor = tensor.to_local()
    return local.detach()
