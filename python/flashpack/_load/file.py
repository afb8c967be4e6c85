"""flashpack.open: a lazy handle on a file, with the calls of safetensors' safe_open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._core.dtypes import numpy_dtype
from .._core.names import close_match
from .._core.native import dtypes
from .._core.paths import StrPath
from .._core.text import size_text
from .._files.opened import OpenModel, opened
from .._files.readable import Source
from . import html
from .load import Device, as_device, described, load_tensors
from .slices import Cuts, part_of

_SHOWN_TENSORS = 20  # in a notebook
_FRAMEWORKS = {"pt": False, "torch": False, "pytorch": False, "np": True, "numpy": True}


@dataclass(frozen=True)
class TensorSlice:
    """One tensor of an open file: index it to load the part that is needed, into memory of its own.

    An index of integers, slices with steps of 1, and `...` reads just that part. Every other index that torch
    takes (steps, lists, masks, None) goes through the file's mapping, where nothing is verified.
    """

    _source: _Source
    _name: str
    _mapped: Tensor

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return self._mapped.shape

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return self._mapped.dtype

    def get_shape(self) -> list[int]:
        """The tensor's shape."""
        return list(self._mapped.shape)

    def get_dtype(self) -> str:
        """safetensors' name of the tensor's dtype ("F32"), or torch's ("complex128") where it has none."""
        return safetensors_name(self._mapped.dtype)

    def __getitem__(self, index: Any) -> Any:
        """The part as a tensor, or as an array under framework="np".

        Raises IndexError for what lies outside of the tensor, as torch does, and as loads otherwise.
        """
        part = part_of(self._mapped.shape, index)
        if part is None:
            return self._source.given(self._source.whole(self._name)[index].clone())
        loaded = self._source.read([self._name], {self._name: part.cuts})[self._name]
        kept = [size for dim, size in enumerate(loaded.shape) if dim not in part.dropped]
        return self._source.given(loaded.reshape(kept))


@dataclass(frozen=True)
class _Source:
    """An open model, its tensors, mapped or without data, and the form that they are given in."""

    model: OpenModel
    tensors: dict[str, Tensor]
    device: torch.device
    verify: bool | None
    as_numpy: bool

    def read(self, names: list[str] | None, slices: Mapping[str, Cuts] | None = None) -> dict[str, Tensor]:
        """The tensors, parts of them, or all."""
        cuts = slices or {}
        wanted = self.tensors if names is None else names
        size = sum(_size_of(self.tensors[name], cuts.get(name, ())) for name in wanted)
        return load_tensors(
            self.model, self.device, names=names, slices=slices, eager=True, verify=self.verify, size=size
        )

    def whole(self, name: str) -> Tensor:
        """A tensor with its data: what is not mapped is read now."""
        tensor = self.tensors[name]
        return self.read([name])[name] if tensor.is_meta else tensor

    def all(self) -> dict[str, Tensor]:
        """Every tensor with its data."""
        return self.read(None) if any(each.is_meta for each in self.tensors.values()) else self.tensors

    def given(self, tensor: Tensor) -> Any:
        """`tensor` on the device, or as an array on the same memory."""
        return to_numpy(tensor) if self.as_numpy else tensor.to(self.device)


def _size_of(tensor: Tensor, cuts: Cuts) -> int:
    """Bytes of what `cuts` leave of a tensor."""
    size = tensor.nbytes
    for dim, start, stop in cuts:
        size = size * (stop - start) // tensor.shape[dim]
    return size


class FlashPackFile:
    """An open model: a file, or several as `load_file` takes them.

    Tensors are mapped: what is never touched is never read. Of a URL, and of a compressed file, each is read
    when it is asked for.
    Iterating gives the names.

    On the CPU tensors are views of one private mapping: writable, and valid after the file is closed. What
    is written to one is seen in every later `get_tensor` of the same name from this handle (and of names
    tied to it), never in the file, in slices or through other handles: clone what is to be changed.
    """

    def __init__(
        self,
        path: Source,
        framework: str = "pt",
        device: Device = "cpu",
        *,
        verify: bool | None = None,
        cache_dir: StrPath | None = None,
    ) -> None:
        if framework not in _FRAMEWORKS:
            raise ValueError(f"framework {framework!r} is not one of {', '.join(_FRAMEWORKS)}")
        as_numpy, place = _FRAMEWORKS[framework], as_device(device)
        if as_numpy and place.type != "cpu":
            raise ValueError(f"framework={framework!r}: arrays are on the CPU, not on {place}")
        with opened(path, cache_dir) as model:
            if not model.can_be_mapped and not verify:
                mapped = described(model.footer, {})
            else:
                mapped = load_tensors(model, torch.device("cpu"), eager=False, verify=verify)
        self._shown = model.shown
        verifies = False if verify is False else None
        self._source: _Source | None = _Source(model, mapped, place, verifies, as_numpy)

    def keys(self) -> list[str]:
        """The names of the tensors, in file order."""
        return list(self._opened().tensors)

    def offset_keys(self) -> list[str]:
        """The names of the tensors, in file order."""
        return self.keys()

    def get_tensor(self, name: str) -> Any:
        """The tensor of this name on the handle's device, or an array. Raises KeyError for an unknown name.

        On the CPU it shares the handle's mapping: writes to it are seen by later calls. Of a URL, and of a
        compressed file, it is read now, into memory of its own.
        """
        self._find(name)
        source = self._opened()
        return source.given(source.whole(name))

    def get_tensors(self) -> dict[str, Any]:
        """Every tensor by its name, as `get_tensor` gives it."""
        return dict(self.items())

    def items(self) -> Iterator[tuple[str, Any]]:
        """Each name with its tensor, in file order; those that cannot be mapped are all read at once."""
        source = self._opened()
        return ((name, source.given(tensor)) for name, tensor in source.all().items())

    def get_slice(self, name: str) -> TensorSlice:
        """Shape, dtype and parts of the tensor. Raises KeyError for an unknown name."""
        return TensorSlice(self._opened(), name, self._find(name))

    def metadata(self) -> dict[str, str] | None:
        """The user's own metadata; None when the file has none."""
        metadata: dict[str, str] | None = self._opened().model.footer.get("metadata")
        return None if metadata is None else dict(metadata)

    def close(self) -> None:
        """Let go of the file. Tensors handed out stay valid."""
        self._source = None

    def __repr__(self) -> str:
        if self._source is None:
            return f"<FlashPackFile {self._shown!r}: closed>"
        tensors = self._source.tensors.values()
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
        size = size_text(sum(tensor.nbytes for tensor in tensors))
        return f"<FlashPackFile {self._shown!r}: {len(tensors)} tensors, {size}, {', '.join(dtypes)}>"

    def _repr_html_(self) -> str:
        if self._source is None:
            return html.titled(repr(self))
        tensors = self._source.tensors
        first = list(tensors.items())[:_SHOWN_TENSORS]
        rows = [
            (name, str(each.dtype).removeprefix("torch."), list(each.shape), size_text(each.nbytes))
            for name, each in first
        ]
        left = len(tensors) - len(first)
        more = f"and {left} more" if left else ""
        return html.titled(repr(self).strip("<>"), html.table(rows, ("name", "dtype", "shape", "size")), more)

    def __enter__(self) -> FlashPackFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, name: str) -> Any:
        return self.get_tensor(name)

    def __len__(self) -> int:
        return len(self._opened().tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._opened().tensors

    def _opened(self) -> _Source:
        if self._source is None:
            raise ValueError(f"{self._shown}: the file is closed")
        return self._source

    def _find(self, name: str) -> Tensor:
        tensors = self._opened().tensors
        if name not in tensors:
            meant = close_match(name, tensors)
            hint = f"; did you mean {meant!r}?" if meant else ""
            raise KeyError(f"{self._shown} has no tensor {name!r}{hint}")
        return tensors[name]


def safetensors_name(dtype: torch.dtype) -> str:
    """safetensors' name of a dtype ("F32"), or torch's where it has none."""
    name = str(dtype).removeprefix("torch.")
    known = dtypes().get(name)
    return (known and known.safetensors) or name


def to_numpy(tensor: Tensor) -> Any:
    """The array on the memory of a tensor of the CPU. Raises ValueError where NumPy lacks the dtype."""
    dtype = numpy_dtype("tensor", str(tensor.dtype).removeprefix("torch."))
    if dtype.isbuiltin == 1:
        return tensor.numpy()
    return tensor.contiguous().view(torch.uint8).numpy().view(dtype).reshape(tensor.shape)


def open(  # noqa: A001 (meant to be called flashpack.open)
    path: Source,
    framework: str = "pt",
    device: Device = "cpu",
    *,
    verify: bool | None = None,
    cache_dir: StrPath | None = None,
) -> FlashPackFile:
    """Open a file lazily; usable as a context manager. `verify=True` checks every checksum first.

    `path` and `cache_dir` as in `load_file`. `framework` is "pt" for torch's tensors or "np" for NumPy's
    arrays, on the CPU.
    Raises FlashPackError for a file that is not sound, OSError for one that cannot be read, ValueError for
    another framework.
    """
    return FlashPackFile(path, framework, device, verify=verify, cache_dir=cache_dir)
