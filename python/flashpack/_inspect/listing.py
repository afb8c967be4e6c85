"""The tensors of a model as a list: chosen by patterns, in an order, added up. Needs no torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .._core import native
from .._core.names import included
from .._files.sources import ModelPath, model_path, shown_path


class Listed(NamedTuple):
    """A tensor: sizes in bytes, the number of its file among the listing's, and its first byte there."""

    name: str
    dtype: str
    shape: list[int]
    bytes: int
    file: int
    offset: int


class File(NamedTuple):
    """A file as errors call it, its bytes, and whether it is compressed: tensors have no place in it then."""

    path: str
    bytes: int
    compressed: bool


class Total(NamedTuple):
    """Several tensors together: their number, elements, bytes, and bytes by dtype."""

    tensors: int
    elements: int
    bytes: int
    dtypes: dict[str, int]

    @classmethod
    def of(cls, tensors: list[list[Any]]) -> Total:
        """Those of a listing."""
        dtypes: dict[str, int] = defaultdict(int)
        for tensor in tensors:
            dtypes[tensor[1]] += tensor[3]
        elements = sum(math.prod(tensor[2]) for tensor in tensors)
        return cls(len(tensors), elements, sum(dtypes.values()), dict(dtypes))


@dataclass(frozen=True, slots=True)
class Listing:
    """A model: what errors call each of its `files`, and its bytes; its `tensors`, by name in natural order.

    Each tensor is a plain list of what `Listed` has, as there may be hundreds of thousands.
    """

    path: str
    files: list[File]
    tensors: list[list[Any]]
    metadata: dict[str, str]
    checksums: str | None

    @classmethod
    def read(cls, path: ModelPath) -> Listing:
        """The list of a model, as `load_file` takes its path. Raises as that does before it reads."""
        text = model_path(path)
        told = native.call("tensors", path=text)
        return cls(shown_path(text), [File(*file) for file in told.pop("files")], **told)

    def offset(self, tensor: list[Any]) -> int | None:
        """The first byte of a tensor in its file; None if that is compressed."""
        return None if self.files[tensor[4]].compressed else tensor[5]

    def only(self, patterns: Iterable[str]) -> Listing:
        """Those that a pattern selects, as `include=` of loads does; all without any. Raises ValueError."""
        if not (patterns := tuple(patterns)):
            return self
        kept = set(included(self.path, [tensor[0] for tensor in self.tensors], patterns, ""))
        return replace(self, tensors=[tensor for tensor in self.tensors if tensor[0] in kept])

    def ordered(self, by: str, *, reverse: bool = False) -> Listing:
        """By "name" as they are, by "size", the largest first, or as they lie in the files, for "file"."""
        tensors = self.tensors
        if by == "size":
            tensors = sorted(tensors, key=lambda tensor: -tensor[3])
        elif by == "file":
            tensors = sorted(tensors, key=lambda tensor: tensor[4:6])
        return replace(self, tensors=tensors[::-1] if reverse else tensors)

    def total(self) -> Total:
        """All together."""
        return Total.of(self.tensors)

    def groups(self, depth: int) -> dict[str, Total]:
        """Totals by the first `depth` parts of the names, between dots; names with fewer are their own."""
        groups: dict[str, list[list[Any]]] = defaultdict(list)
        for tensor in self.tensors:
            groups[".".join(tensor[0].split(".")[:depth])].append(tensor)
        return {prefix: Total.of(tensors) for prefix, tensors in groups.items()}

    def as_json(self) -> dict[str, Any]:
        """All of it, with the names of what it is."""
        total = self.total()
        return {
            "path": self.path,
            "files": [file._asdict() for file in self.files],
            "checksums": self.checksums,
            "metadata": self.metadata,
            "totals": {"tensors": total.tensors, "elements": total.elements, "bytes": total.bytes},
            "bytes_by_dtype": total.dtypes,
            "tensors": [
                {
                    **Listed(*tensor)._asdict(),
                    "file": self.files[tensor[4]].path,
                    "offset": self.offset(tensor),
                }
                for tensor in self.tensors
            ],
        }
