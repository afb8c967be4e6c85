"""Loading tensors by name, to any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from . import _ops
from ._names import name_tuple
from ._native import Counter
from ._paths import StrPath, text_path
from ._progress import run

T = TypeVar("T")
Device = str | int | torch.device


def load_file(
    path: StrPath,
    device: Device = "cpu",
    *,
    names: Iterable[str] | None = None,
    eager: bool | None = None,
    verify: bool | None = None,
) -> dict[str, Tensor]:
    """The tensors of a FlashPack file, in file order, or those of `names` in that order.

    On the CPU the default maps the file: nothing is read until it is touched, pages are private to the
    process and writable, the file is never changed. `eager=True` reads every byte into private memory
    now (as FLASHPACK_CPU_PARALLEL_READ=1 does) and verifies checksums unless `verify=False`.
    Tensors that are stored once (tied weights) share memory.

    Raises FlashPackError or ChecksumError for a file that is not sound, OSError for one that cannot be
    read, ValueError for a name that it does not hold.
    """
    text = text_path(path)
    wanted = None if names is None else list(dict.fromkeys(name_tuple("names", names)))
    return load_tensors(text, torch.device(device), names=wanted, eager=eager, verify=verify)


def load_tensors(
    path: str,
    device: torch.device,
    *,
    names: Sequence[str] | None = None,
    ignore: Mapping[str, Sequence[str]] | None = None,
    eager: bool | None = None,
    verify: bool | None = None,
    silent: bool | None = True,
) -> dict[str, Tensor]:
    """Load by name, or everything that is not ignored."""
    eager = _eager_for(device, eager)

    def work(counter: Counter | None) -> dict[str, Tensor]:
        if names is None:
            return _ops.state_dict(path, ignore or {}, eager=eager, verify=verify, counter=counter)
        tensors = _ops.load(path, names, eager=eager, verify=verify, counter=counter)
        return dict(zip(names, tensors, strict=True))

    loaded = run_load(work, path, eager=eager, verify=verify, silent=silent)
    return dict(zip(loaded, to_device(list(loaded.values()), device), strict=True))


def load_blocks(
    path: str, device: torch.device, *, eager: bool | None, verify: bool | None, silent: bool | None
) -> list[Tensor]:
    """The macroblocks of the file, each a 1-D tensor on `device`."""
    eager = _eager_for(device, eager)
    blocks = run_load(
        lambda counter: _ops.blocks(path, eager=eager, verify=verify, counter=counter),
        path,
        eager=eager,
        verify=verify,
        silent=silent,
    )
    return to_device(blocks, device)


def run_load(
    work: Callable[[Counter | None], T],
    path: str,
    *,
    eager: bool | None,
    verify: bool | None,
    silent: bool | None,
) -> T:
    """Run a load with progress; one that only maps the file has nothing to show."""
    reads = eager is not False or bool(verify)
    size = Path(path).stat().st_size if reads else 0
    return run(work, label="Loading", size=size, silent=silent)


def _eager_for(device: torch.device, eager: bool | None) -> bool | None:
    """Bytes bound for another device are all needed now; a mapping would only fault them in one by one."""
    return True if eager is None and device.type not in ("cpu", "meta") else eager


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """`tensors` on `device`; those that are the same memory stay the same memory."""
    if device.type == "cpu":
        return list(tensors)
    return duplicate(tensors, lambda tensor: tensor.to(device))


def duplicate(tensors: Iterable[Tensor], copy: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """A copy of every tensor by `copy`, made once for each distinct range of memory."""
    copies: dict[tuple[int, int, torch.dtype], Tensor] = {}
    result = []
    for tensor in tensors:
        key = (tensor.data_ptr(), tensor.numel(), tensor.dtype)
        if tensor.numel() == 0:  # no memory to share: every empty tensor has the same address
            result.append(copy(tensor))
            continue
        if key not in copies:
            copies[key] = copy(tensor)
        result.append(copies[key].view(tensor.shape))
    return result
