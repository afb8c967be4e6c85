"""flashpack.open: a lazy handle on a file, for people who think in safetensors' safe_open."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ._footer import read_index
from ._load import Device, load_tensors
from ._paths import read_one_version
from ._sources import ModelPath, model_path, shown_path


class TensorSlice:
    """One tensor of an open file: index it to get the part that is needed."""

    def __init__(self, tensor: Tensor, device: torch.device) -> None:
        self._tensor = tensor
        self._device = device

    def get_shape(self) -> list[int]:
        """The tensor's shape."""
        return list(self._tensor.shape)

    def get_dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return self._tensor.dtype

    def __getitem__(self, index: Any) -> Tensor:
        return self._tensor[index].to(self._device)


class FlashPackFile:
    """An open model: a file, or several as `load_file` takes them.

    Tensors are mapped: what is never touched is never read.

    On the CPU tensors are views of one private mapping: writable, and valid after the file is closed. What
    is written to one is seen in every later `get_tensor` and `get_slice` of the same name from this handle
    (and of names tied to it), never in the file or through other handles: clone what is to be changed.
    """

    def __init__(self, path: ModelPath, *, device: Device = "cpu", verify: bool | None = None) -> None:
        self._path = model_path(path)
        self._device = torch.device(device)
        self._tensors: dict[str, Tensor] | None
        # Both now: the file may be replaced while it is open, the mapping stays.
        self._tensors, footer = read_one_version(
            self._path,
            lambda: (
                load_tensors(self._path, torch.device("cpu"), eager=False, verify=verify),
                read_index(self._path),
            ),
        )
        self._metadata: dict[str, str] = footer.get("metadata", {})

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
        return TensorSlice(self._find(name), self._device)

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
