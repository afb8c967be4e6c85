"""Loading tensors by name, to any device."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import torch
from torch import Tensor

from .._core import ops
from .._core.dtypes import is_castable
from .._core.index import records_of
from .._core.names import include_tuple, included, is_ignored_tensor_name, name_tuple
from .._core.native import Counter
from .._core.paths import StrPath
from .._core.progress import INLINE_BYTES, Silent, run
from .._files.opened import OpenModel, opened
from .._files.readable import Source
from .cast import cast, duplicate, load_cast, requested_dtype
from .report import remember
from .slices import Cuts, SliceLike, parse_slices

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
Device = str | int | torch.device


def as_device(device: Device) -> torch.device:
    """`device` as torch's own; cpu:0 is the CPU, whose tensors have no index.

    Raises RuntimeError for what names no kind of device, ValueError for another CPU than the first.
    """
    if isinstance(device, str) and device.partition(":")[0] == "gpu":
        raise RuntimeError(f"{device!r} is no device: torch calls GPUs of NVIDIA and AMD 'cuda', 'cuda:0'")
    named = torch.device(device)
    if named.type != "cpu":
        return named
    if named.index:
        raise ValueError(f"there is no device {named}: the CPU is one device")
    return torch.device("cpu")


def load_file(
    path: Source,
    device: Device = "cpu",
    *,
    names: Iterable[str] | None = None,
    slices: Mapping[str, SliceLike] | None = None,
    eager: bool | None = None,
    verify: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
    dtype: torch.dtype | str = "file",
    cache_dir: StrPath | None = None,
    include: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a FlashPack or safetensors file, in file order, or those of `names` in that order.

    `path` may also be a folder, the index of shards, the name that they were saved under, or a list of files:
    these load as one, and no name may be in two. safetensors have no checksums. An object with
    `read`, such as an open binary file, is copied to memory first.

    Each may be a URL: s3://bucket/key, gs://bucket/object, az://container/blob, https://host/path,
    hf://owner/repository@revision/file. Such loads are always eager; they leave nothing on the disk but what
    `cache_dir`, or FLASHPACK_CACHE, keeps for the next load.

    `include` selects by patterns instead, in file order. With `*`, `?` or `[` a pattern is a glob for the
    whole name ("*.bias"; `*` stands for dots as well). Any other names a tensor, or a module with all below
    it: "layers.1" selects "layers.1.bias", not "layers.10.bias". Each must fit something.

    `slices` maps names to `(dim, start, stop)`, or to several of these for different dimensions: of those
    tensors only that part is loaded. No more than 8 KiB beyond the part are read for each of its runs of
    bytes in the file; checksums are verified where whole chunks (1 MiB) are read.

    On the CPU the default maps the file: tensors are there at once, pages are private to the process and
    writable, the file is never changed. What the page cache lacks is read ahead in the background if there
    is memory for it; with `eager=False` nothing is read until it is touched. `eager=True` reads every byte
    into private memory now (as FLASHPACK_CPU_PARALLEL_READ=1 does) and verifies checksums unless
    `verify=False`.
    On a CUDA device tensors are ready in the order of the current stream, and verified. `progress` is told
    the bytes read and the bytes in all as a long load goes on; what it raises cancels the load.
    Tensors that are stored once (tied weights) share memory. `dtype`, or its name, is what floating tensors
    are cast to while they are loaded; all others, and by default all, have the file's.

    Raises FlashPackError or ChecksumError for a file that is not sound, OSError for one that cannot be
    read, ValueError for a name or a part that it does not hold, a pattern that fits nothing, or a dtype
    that is not floating.
    """
    floats = requested_dtype(dtype)
    if floats == "model":
        raise ValueError('dtype="model" is for loads into a model')
    wanted = None if names is None else list(dict.fromkeys(name_tuple("names", names)))
    patterns = include_tuple(include)
    if patterns and wanted is not None:
        raise ValueError("names and include both select: pass one of them")
    cuts = parse_slices(slices)
    with opened(path, cache_dir) as model:
        if (cuts or patterns) and wanted is None:
            wanted = [name for name, _, _ in records_of(model.footer)]
            wanted = included(model.shown, wanted, patterns) if patterns else wanted
        load = functools.partial(load_tensors, model, as_device(device), eager=eager, verify=verify)
        silent: Silent = progress or True
        if floats == "file":
            return load(names=wanted, slices=cuts, silent=silent)
        _ops_slices(wanted or (), cuts)  # of any other tensor is refused here
        maps = torch.device(device).type == "cpu" and surely_maps(model, eager, verify) and not cuts
        return _load_as(floats, load, model, wanted, cuts, maps, silent)


def _load_as(
    floats: torch.dtype,
    load: Callable[..., dict[str, Tensor]],
    model: OpenModel,
    names: Sequence[str] | None,
    cuts: Mapping[str, Cuts],
    maps: bool,
    silent: Silent,
) -> dict[str, Tensor]:
    """The tensors of `names`, or all of the model, by `load`, floating ones as `floats`."""
    stored: dict[str, torch.dtype] = {
        name: getattr(torch, dtype) for name, _, dtype in records_of(model.footer)
    }
    wanted = list(stored) if names is None else names
    if unknown := [name for name in wanted if name not in stored]:
        return load(names=unknown)  # which says so
    dtypes = {name: floats if is_castable(stored[name]) else stored[name] for name in wanted}
    if maps:
        return cast(load(names=wanted, silent=silent), dtypes)

    def load_some(some: list[str], silent: Silent) -> dict[str, Tensor]:
        parts = {name: cuts[name] for name in some if name in cuts}
        return load(names=some, slices=parts, silent=silent)

    return load_cast(load_some, model.footer, dtypes, silent)


def surely_maps(model: OpenModel, eager: bool | None, verify: bool | None) -> bool:
    """Whether a CPU load of `model` with these options only maps the file: it reads no payload.

    The native side reads the environment variable; here it only matters whether there is one.
    """
    if not model.can_be_mapped:
        return False
    maps = not eager if eager is not None else "FLASHPACK_CPU_PARALLEL_READ" not in os.environ
    return maps and not verify


def described(footer: dict[str, Any], ignore: Mapping[str, Iterable[str]]) -> dict[str, Tensor]:
    """The tensors that are not ignored, without data; those that are stored once are one tensor."""
    made: dict[tuple[object, ...], Tensor] = {}
    result = {}
    for record, (name, shape, dtype) in zip(footer["index"], records_of(footer), strict=True):
        if not is_ignored_tensor_name(name, **ignore):
            # What has no elements may lie where another begins.
            key = (record.get("macroblock", 0), record["offset"], shape, None if record["length"] else name)
            if key not in made:
                made[key] = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            result[name] = made[key]
    return result


class Reading(TypedDict, total=False):
    """How a load reads: `eager` and `verify` as in `load_file`, `silent` as in `run`.

    `size`: bytes of the tensors, from who knows; otherwise they may be all of the model.
    """

    eager: bool | None
    verify: bool | None
    silent: Silent
    size: int


def load_tensors(
    model: OpenModel,
    device: torch.device,
    *,
    names: Sequence[str] | None = None,
    slices: Mapping[str, Cuts] | None = None,
    ignore: Mapping[str, Sequence[str]] | None = None,
    **reading: Unpack[Reading],
) -> dict[str, Tensor]:
    """Load by name, `slices` of some of these, or everything that is not ignored."""
    if ignore and ignore.get("include"):  # of which the native side knows nothing
        names = list(described(model.footer, ignore))
    if names is not None:
        listed = load_list(model, names, device, slices=_ops_slices(names, slices or {}), **reading)
        return dict(zip(names, listed, strict=True))
    loaded = _loaded(ops.load_all, (ignore or {},), model, device, reading)
    if native_device(device).type == device.type:
        return loaded
    return dict(zip(loaded, _to_device(list(loaded.values()), device), strict=True))


def load_list(
    model: OpenModel,
    names: Sequence[str],
    device: torch.device,
    *,
    slices: Sequence[ops.Slice] = (),
    **reading: Unpack[Reading],
) -> list[Tensor]:
    """Load each of `names`, of which some may occur more than once, or `slices` of them."""
    return _to_device(_loaded(ops.load, (names, slices), model, device, reading), device)


def load_blocks(model: OpenModel, device: torch.device, **reading: Unpack[Reading]) -> list[Tensor]:
    """The macroblocks of the model, each a 1-D tensor on `device`."""
    return _to_device(_loaded(ops.load_blocks, (), model, device, reading), device)


def _loaded(
    op: Callable[..., T], asked: tuple[Any, ...], model: OpenModel, device: torch.device, reading: Reading
) -> T:
    native = native_device(device)
    return run_load(lambda how: op(model.handle, *asked, device=native, **how), model, native, reading)


def run_load(work: Callable[[ops.How], T], model: OpenModel, device: torch.device, reading: Reading) -> T:
    """Run a load to `device` with progress; one that only maps the file has nothing to show.

    Its report becomes this thread's last load, whatever thread has run it.
    """
    on_cuda = device.type == "cuda"
    eager, verify = reading.get("eager"), reading.get("verify")
    reads = on_cuda or eager is not False or verify or not model.can_be_mapped
    size = reading.get("size", model.bytes) if reads else 0
    if model.is_remote:  # however small, it may take long, and Ctrl-C must reach Python
        size = max(model.bytes, INLINE_BYTES)
    # Other threads wait for a stream and queue work on it just as well, as torch's own do, but some streams
    # are this thread's alone.
    here = on_cuda and size >= INLINE_BYTES and ops.is_bound_to_thread(device)
    native = _on_callers_stream(work, device)

    def reported(counter: Counter | None) -> tuple[T, dict[str, Any] | None]:
        return native({"eager": eager, "verify": verify, "counter": counter}), ops.last_load()

    silent = reading.get("silent", True)
    result, report = run(reported, label="Loading", size=size, silent=silent, here=here)
    remember(report)
    if on_cuda:
        _warn_of_pageable_memory()
    return result


def _ops_slices(names: Sequence[str], slices: Mapping[str, Cuts]) -> list[ops.Slice]:
    places = {name: place for place, name in enumerate(names)}
    unknown = [name for name in slices if name not in places]
    if unknown:
        raise ValueError(f"slices of tensors that are not loaded: {unknown}")
    return [ops.Slice(places[name], *cut) for name, cuts in slices.items() for cut in cuts]


def native_device(device: torch.device) -> torch.device:
    """Where the native side loads to: CUDA or the CPU, from where `_to_device` goes on."""
    if device.type != "cuda":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device


def _on_callers_stream(work: Callable[[ops.How], T], device: torch.device) -> Callable[[ops.How], T]:
    """`work` in the order of this thread's current stream, whatever thread runs it."""
    if device.type != "cuda":
        return work
    caller, stream = threading.get_ident(), torch.cuda.current_stream(device)

    def on_stream(how: ops.How) -> T:
        if threading.get_ident() != caller:
            # For good, as the thread is for this load alone: `with torch.cuda.stream` would end by selecting
            # the device that was current before, which makes a context there.
            torch.cuda.set_stream(stream)
        return work(how)

    return on_stream


@functools.cache
def _warn_once_of_pageable_memory() -> None:
    warnings.warn(
        "flashpack: memory could not be pinned (see `ulimit -l`): loads to the device copy more slowly",
        RuntimeWarning,
        stacklevel=2,
    )


def _warn_of_pageable_memory() -> None:
    if ops.pinned_usage().pageable:
        _warn_once_of_pageable_memory()


def _to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """`tensors` on `device`; those that are the same memory stay the same memory."""
    if device.type in ("cpu", "cuda"):  # where the native side put them
        return list(tensors)
    return duplicate(tensors, lambda tensor: tensor.to(device))
