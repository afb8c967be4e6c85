"""The only file that names `torch.ops.flashpack`: loads the library once, one typed function per op.

Every function raises OSError, FlashPackError, ValueError… in place of the RuntimeError torch delivers.
Tensors that come out are ordinary ones, whatever inference mode the caller is in: a model that is loaded
under `torch.inference_mode()` stays trainable, and a load behaves alike in this and in a worker thread.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from . import fakes
from .errors import from_native
from .native import LIBRARY_FOLDER, Counter, native_path

if TYPE_CHECKING:
    from typing_extensions import Unpack


def library_path() -> str:
    """Path of the operator library."""
    return str(LIBRARY_FOLDER / "libflashpack_torch.so")


def _load_library() -> None:
    path = library_path()
    try:
        load_library: Callable[[str], None] = torch.ops.load_library
        load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path} cannot be loaded (torch {torch.__version__}, at least 2.11 is needed): {error}"
        ) from error
    fakes.register()
    # torch imports what reads a bool on first use. A save at the interpreter's end could no longer do so.
    torch.ops.aten.Int.bool(True)


_load_library()

# Overloads by their own names: to find the one that fits, torch would try one after another.
_OPERATORS: dict[str, Any] = {
    name: operator.attrgetter(name)(torch.ops.flashpack)
    for name in (
        *("open", "describe", "load.names", "load.ignoring", "load.blocks", "assign.all"),
        *("fill.default", "fill.all", "fill.payload", "set_data", "pack", "last_load", "pinned"),
        "is_bound_to_thread",
    )
}


class Slice(NamedTuple):
    """Indices `start` to `stop` of dimension `dim` of the tensor at this place among the names."""

    tensor: int
    dim: int
    start: int
    stop: int


def open_model(path: str, cache_dir: str | None, counter: Counter | None) -> Tensor:
    """What stands for the model at `path` in the calls below; closed with the last reference.

    Of what is read by URL the folder `cache_dir` keeps a copy.
    """
    cache = None if cache_dir is None else native_path(cache_dir)
    handle: Tensor = _run("open", native_path(path), cache_dir=cache, progress=_progress(counter))
    return handle


def describe(model: Tensor) -> str:
    """The footer's JSON."""
    text: str = _run("describe", model)
    return text


class How(TypedDict):
    """How a load reads: the operators' options of these names, and the progress buffer."""

    eager: bool | None
    verify: bool | None
    counter: Counter | None


def load(
    model: Tensor,
    names: Sequence[str],
    slices: Sequence[Slice] = (),
    *,
    device: torch.device,
    **how: Unpack[How],
) -> list[Tensor]:
    """The named tensors on `device`, in the order of `names`. Identical ranges of the file share memory."""
    numbers = [number for part in slices for number in part] or None
    tensors: list[Tensor] = _run(
        "load.names", model, list(names), device=device, slices=numbers, **_reading(how)
    )
    return tensors


def load_all(
    model: Tensor, ignore: Mapping[str, Sequence[str]], *, device: torch.device, **how: Unpack[How]
) -> dict[str, Tensor]:
    """Every tensor whose name is not ignored, in file order. `ignore` holds ignore_names and the like."""
    names, tensors = _run("load.ignoring", model, **ignore, device=device, **_reading(how))
    return dict(zip(names, tensors, strict=True))


def load_blocks(model: Tensor, *, device: torch.device, **how: Unpack[How]) -> list[Tensor]:
    """One 1-D tensor per macroblock."""
    result: list[Tensor] = _run("load.blocks", model, device=device, **_reading(how))
    return result


def fill(model: Tensor, names: Sequence[str], tensors: Sequence[Tensor], **how: Unpack[How]) -> None:
    """Fill the memory of `tensors`, all on one device, with the named records of equal shape and dtype."""
    _run("fill.default", model, list(names), list(tensors), **_filling(how))


def fill_payload(
    model: Tensor, offsets: Sequence[int], tensors: Sequence[Tensor], *, verify: bool | None
) -> None:
    """Fill each of `tensors`, flat uint8 on one device, with the file's bytes from its offset on."""
    _run("fill.payload", model, list(offsets), list(tensors), verify=verify)


class Outcome(NamedTuple):
    """Of a load into tensors: whether it was `done`, the places of the names that the file lacks, and the
    file's names that were not given. With neither, it was not done because a tensor is not as its record."""

    done: bool
    unknown: list[int]
    unnamed: list[str]


def fill_all(
    model: Tensor, names: str, tensors: list[Tensor], *, partly: bool, **how: Unpack[How]
) -> Outcome:
    """`fill` if the file holds just these names, NUL between them, and each tensor is as its record.

    `partly`: the file may have others, too. If it is not done, nothing has changed.
    """
    with torch._C.DisableTorchFunctionSubclass():
        return Outcome(*_run("fill.all", model, names, tensors, partly=partly, **_filling(how)))


def assign_all(
    model: Tensor, names: str, tensors: list[Tensor], *, partly: bool, **how: Unpack[How]
) -> Outcome:
    """As `fill_all`, but the tensors get other memory with their records, on the device they are on."""
    with torch._C.DisableTorchFunctionSubclass():
        return Outcome(*_run("assign.all", model, names, tensors, partly=partly, **_reading(how)))


def _reading(how: How) -> dict[str, Any]:
    return {"eager": how["eager"], **_filling(how)}


def _filling(how: How) -> dict[str, Any]:
    return {"verify": how["verify"], "progress": _progress(how["counter"])}


def last_load() -> dict[str, Any] | None:
    """What the last load that this very thread ran did, as `LoadReport` has it but times in nanoseconds."""
    told: dict[str, Any] | None = json.loads(_run("last_load"))
    return told


class PinnedUsage(NamedTuple):
    """Pinned staging memory of the process, in bytes; `pageable`: some of it could not be pinned."""

    bytes: int
    peak_bytes: int
    pageable: bool


def pinned_usage() -> PinnedUsage:
    """What the pool of staging buffers holds."""
    held, peak, pageable = _run("pinned")
    return PinnedUsage(held, peak, bool(pageable))


def release_pinned_pool() -> None:
    """Free the staging buffers that no load is using."""
    _run("pinned", release=True)


def set_data(tensors: list[Tensor], values: list[Tensor]) -> None:
    """Give every tensor the storage, shape and dtype of its value; identity and requires_grad stay."""
    # A subclass's __torch_function__ has no say here: this replaces bytes, it computes nothing.
    with torch._C.DisableTorchFunctionSubclass():
        _run("set_data", tensors, values)


def is_bound_to_thread(device: torch.device) -> bool:
    """Whether the current stream of a CUDA device is another stream to other threads: a per-thread default
    stream, or the default stream of a context of this thread's. Raises ValueError while it is captured."""
    bound: bool = _run("is_bound_to_thread", device)
    return bound


def pack(
    path: str,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None,
    align_bytes: int,
    keep_order: bool,
    metadata: Mapping[str, str],
    checksum: str | None,
    max_shard_bytes: int | None,
    compress: str | None,
    counter: Counter | None,
) -> None:
    """Write `tensors` to `path`, or as its shards, atomically. What is the same memory is stored once."""
    pairs = [text for pair in metadata.items() for text in pair]
    _run(
        "pack",
        native_path(path),
        list(tensors),
        list(tensors.values()),
        dtype=dtype,
        align_bytes=align_bytes,
        keep_order=keep_order,
        metadata=pairs,
        checksum=checksum,
        max_shard_bytes=max_shard_bytes,
        compress=compress,
        progress=_progress(counter),
    )


def _progress(counter: Counter | None) -> Tensor | None:
    """A tensor on the counter's own memory, so that both sides see each other's writes."""
    return None if counter is None else torch.frombuffer(counter, dtype=torch.int64)


def _run(name: str, *args: Any, **options: Any) -> Any:
    try:
        # No operator takes part in a graph; torch would collect what each tensor given has in one.
        with torch.inference_mode(False), torch.no_grad():
            return _OPERATORS[name](*args, **options)
    except RuntimeError as error:
        translated = from_native(str(error)) or _out_of_memory(str(error))
        if translated is None:
            raise
        raise translated from None


def _out_of_memory(text: str) -> torch.OutOfMemoryError | None:
    """torch's own exception for a full device, which comes out of the stable ABI as a RuntimeError."""
    if "CUDA out of memory" not in text:
        return None
    return torch.OutOfMemoryError(text.partition(" (originally from ")[0])
