"""The tensors of a model as a list: chosen by patterns, in an order, added up. Needs no torch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from .._core import native
from .._core.names import included
from .._files.sources import ModelPath, model_path, shown_path

# A tensor: its name, the numbers of its kind and of its file among the listing's, and its first byte there.
Listed: TypeAlias = tuple[str, int, int, int]


class Kind(NamedTuple):
    """What tensors have in common; the bytes are those of one."""

    dtype: str
    shape: list[int]
    bytes: int


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


@dataclass(frozen=True, slots=True)
class Listing:
    """A model: its `files`; its `tensors`, by name in natural order, and the `kinds` that they are of.

    There may be hundreds of thousands of tensors, and few kinds.
    """

    path: str
    files: list[File]
    kinds: list[Kind]
    tensors: list[Listed]
    metadata: dict[str, str]
    checksums: str | None

    @classmethod
    def read(cls, path: ModelPath) -> Listing:
        """The list of a model, as `load_file` takes its path. Raises as that does before it reads."""
        text = model_path(path)
        told = native.call("tensors", path=text)
        files = [File(*file) for file in told.pop("files")]
        kinds = [Kind(*kind) for kind in told.pop("kinds")]
        tensors = [*zip(*told.pop("tensors"), strict=True)]
        return cls(shown_path(text), files, kinds, tensors, **told)

    def offset(self, tensor: Listed) -> int | None:
        """The first byte of a tensor in its file; None if that is compressed."""
        _, _, file, offset = tensor
        return None if self.files[file].compressed else offset

    def only(self, patterns: Iterable[str]) -> Listing:
        """Those that a pattern selects, as `include=` of loads does; all without any. Raises ValueError."""
        if not (patterns := tuple(patterns)):
            return self
        kept = set(included(self.path, [tensor[0] for tensor in self.tensors], patterns, ""))
        tensors = [tensor for tensor in self.tensors if tensor[0] in kept]
        numbers = {
            kind: number for number, kind in enumerate(dict.fromkeys(kind for _, kind, _, _ in tensors))
        }
        return replace(
            self,
            kinds=[self.kinds[kind] for kind in numbers],
            tensors=[(name, numbers[kind], file, offset) for name, kind, file, offset in tensors],
        )

    def ordered(self, by: str, *, reverse: bool = False) -> Listing:
        """By "name" as they are, by "size", the largest first, or as they lie in the files, for "file"."""
        tensors = self.tensors
        if by == "size":
            tensors = sorted(tensors, key=lambda tensor: -self.kinds[tensor[1]].bytes)
        elif by == "file":
            tensors = sorted(tensors, key=lambda tensor: tensor[2:])
        return replace(self, tensors=tensors[::-1] if reverse else tensors)

    def total(self) -> Total:
        """All together."""
        return self._total(kind for _, kind, _, _ in self.tensors)

    def groups(self, depth: int) -> dict[str, Total]:
        """Totals by the first `depth` parts of the names, between dots; names with fewer are their own."""
        groups: dict[str, list[int]] = defaultdict(list)
        for name, kind, _, _ in self.tensors:
            groups[".".join(name.split(".")[:depth])].append(kind)
        return {prefix: self._total(kinds) for prefix, kinds in groups.items()}

    def _total(self, kinds: Iterable[int]) -> Total:
        """Tensors of these kinds together."""
        tensors = elements = 0
        dtypes: dict[str, int] = defaultdict(int)
        for number, count in Counter(kinds).items():
            kind = self.kinds[number]
            tensors += count
            elements += count * math.prod(kind.shape)
            dtypes[kind.dtype] += count * kind.bytes
        return Total(tensors, elements, sum(dtypes.values()), dict(dtypes))

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
                    "name": tensor[0],
                    **self.kinds[tensor[1]]._asdict(),
                    "file": self.files[tensor[2]].path,
                    "offset": self.offset(tensor),
                }
                for tensor in self.tensors
            ],
        }
