"""flashpack.open: a lazy handle on a file, for people who think in safetensors' safe_open."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ._footer import read_index
from ._load import Device, as_device, load_tensors
from ._paths import identity_of, read_one_version
from ._slices import Cuts, part_of
from ._sources import ModelPath, model_path, shown_path


@dataclass(frozen=True)
class TensorSlice:
    """One tensor of an open file: index it to read the part that is needed, into memory of its own.

    Indices are those of numpy's basic indexing: integers, slices with steps of 1, and `...`.
    """

    _source: _Source
    _name: str
    _mapped: Tensor

    def get_shape(self) -> list[int]:
        """The tensor's shape."""
        return list(self._mapped.shape)

    def get_dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return self._mapped.dtype

    def __getitem__(self, index: Any) -> Tensor:
        """Raises IndexError for what lies outside of the tensor, ValueError for steps, as loads otherwise."""
        part = part_of(self._mapped.shape, index)
        loaded = self._source.read(self._name, part.cuts)
        if loaded is None:
            return self._mapped[index].clone().to(self._source.device)
        return loaded.reshape([size for dim, size in enumerate(loaded.shape) if dim not in part.dropped])


@dataclass(frozen=True)
class _Source:
    """The file behind a mapping, as long as it is still the same one."""

    path: str
    device: torch.device
    verify: bool | None
    identity: tuple[int, ...]

    def read(self, name: str, cuts: Cuts) -> Tensor | None:
        """That part of a tensor; None if another file has taken the path meanwhile."""
        if identity_of(self.path) != self.identity:
            return None
        loaded = load_tensors(
            self.path, self.device, names=[name], slices={name: cuts}, eager=True, verify=self.verify
        )
        return loaded[name] if identity_of(self.path) == self.identity else None


class FlashPackFile:
    """An open model: a file, or several as `load_file` takes them.

    Tensors are mapped: what is never touched is never read.

    On the CPU tensors are views of one private mapping: writable, and valid after the file is closed. What
    is written to one is seen in every later `get_tensor` of the same name from this handle (and of names
    tied to it), never in the file, in slices or through other handles: clone what is to be changed.
    """

    def __init__(self, path: ModelPath, *, device: Device = "cpu", verify: bool | None = None) -> None:
        self._path = model_path(path)
        self._device = as_device(device)
        self._tensors: dict[str, Tensor] | None
        # All now: the file may be replaced while it is open, the mapping stays.
        self._tensors, footer, identity = read_one_version(
            self._path,
            lambda: (
                load_tensors(self._path, torch.device("cpu"), eager=False, verify=verify),
                read_index(self._path),
                identity_of(self._path),
            ),
        )
        self._metadata: dict[str, str] = footer.get("metadata", {})
        self._source = _Source(self._path, self._device, False if verify is False else None, identity)

    def keys(self) -> list[str]:
        """The names of the tensors, in file order."""
        return list(self._opened())

    def get_tensor(self, name: str) -> Tensor:
        """The tensor of this name on the handle's device. Raises KeyError for an unknown name.

        On the CPU it shares the handle's mapping: writes to it are seen by later calls.
        """
        return self._find(name).to(self._device)

    def get_slice(self, name: str) -> TensorSlice:
        """A handle on part of the tensor. Raises KeyError for an unknown name."""
        return TensorSlice(self._source, name, self._find(name))

    def metadata(self) -> dict[str, str]:
        """The user's own metadata; empty when the file has none."""
        self._opened()
        return dict(self._metadata)

    def close(self) -> None:
        """Let go of the file. Tensors handed out stay valid."""
        self._tensors = None

    def __enter__(self) -> FlashPackFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._opened())

    def __contains__(self, name: object) -> bool:
        return name in self._opened()

    def _opened(self) -> dict[str, Tensor]:
        if self._tensors is None:
            raise ValueError(f"{shown_path(self._path)}: the file is closed")
        return self._tensors

    def _find(self, name: str) -> Tensor:
        tensors = self._opened()
        if name not in tensors:
            raise KeyError(f"{shown_path(self._path)} has no tensor {name!r}")
        return tensors[name]


def open(  # noqa: A001 (meant to be called flashpack.open)
    path: ModelPath, *, device: Device = "cpu", verify: bool | None = None
) -> FlashPackFile:
    """Open a file lazily; usable as a context manager. `verify=True` checks every checksum first.

    Raises FlashPackError for a file that is not sound, OSError for one that cannot be read.
    """
    return FlashPackFile(path, device=device, verify=verify)
