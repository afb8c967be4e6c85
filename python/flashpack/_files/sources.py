"""Which weight files a path stands for: one file, a list, or what a folder's index lists. Needs no torch."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from .._core import native
from .._core.paths import SEPARATOR, StrPath, text_path
from .._core.progress import INLINE_BYTES
from .folder import ADAPTER_STEMS, SAFETENSORS, SUFFIX, library_of, stem_of, weights_name
from .shards import INDEX_SUFFIX, index_path

KINDS = (SAFETENSORS, ".bin")  # what is converted: safetensors go before what is pickled
LOADABLE = (SUFFIX, SAFETENSORS)  # what loads as it is
# A file, a folder, the index of shards, the name they were saved under, or a list of files.
ModelPath: TypeAlias = StrPath | Sequence[StrPath]
_MODEL_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
_METADATA = "__metadata__"  # the one key of a header that is no tensor
_HEADER_LENGTH_BYTES = 8
_FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class Sources:
    """Weight files of one kind. `promised` maps each tensor an index lists to the shard it names."""

    files: list[Path]
    promised: dict[str, str] = field(default_factory=dict)

    @property
    def packed_stem(self) -> str:
        """The stem of the FlashPack file that is made of them in a folder."""
        return stem_of(self.files[0])

    @property
    def are_safetensors(self) -> bool:
        """Whether the files are safetensors; else they are torch's."""
        return self.files[0].suffix.lower() == SAFETENSORS


def find_sources(path: Path, variant: str | None = None) -> Sources:
    """The weight files behind `path`.

    Raises FileNotFoundError when there are none, ValueError for a folder or an index that is ambiguous,
    incomplete or names files outside of the folder.
    """
    if path.is_file():
        return Sources([path])
    if path.is_dir():
        return _in_folder(path, variant)
    raise FileNotFoundError(errno.ENOENT, "No such file or folder", str(path))


def model_path(path: ModelPath) -> str:
    """What the native side opens for `path`: a weight file, the index of shards, or a list of files.

    Raises TypeError, ValueError for a folder whose weights are ambiguous, incomplete or not there to be
    loaded as they are, FileNotFoundError for one without weights.
    """
    if isinstance(path, list | tuple):
        if not path:
            raise ValueError("the list of files is empty")
        return SEPARATOR.join(text_path(each) for each in path)
    text = text_path(path)  # type: ignore[arg-type] # or it raises TypeError
    given = Path(text)
    if given.is_dir():
        return str(find_weights_file(given, None, LOADABLE))
    index = index_path(given)
    return str(index) if not os.path.lexists(given) and index.is_file() else text


def shown_path(text: str) -> str:
    """What `model_path` gave, for people."""
    return text.replace(SEPARATOR, ", ")


def size_of(text: str) -> int:
    """Bytes of the files behind what `model_path` gave; of shards no less than what is a long load."""
    sizes = [Path(each).stat().st_size for each in text.split(SEPARATOR)]
    return max(sizes[0], INLINE_BYTES) if text.endswith(".json") else sum(sizes)


def single_names(suffix: str, variant: str | None, stems: Sequence[str] = _MODEL_STEMS) -> list[str]:
    """The names that whole checkpoints go by, the likeliest first."""
    return [weights_name(variant, suffix, stem) for stem in stems]


def find_index(
    folder: Path, suffix: str, variant: str | None, stems: Sequence[str] = _MODEL_STEMS
) -> Path | None:
    """The index of sharded weights of one kind, of one of the `stems` if there is one.

    Raises ValueError when there are several others.
    """
    names = {entry.name for entry in folder.iterdir()}
    if named := _named_index(names, suffix, variant, stems):
        return folder / named
    middle = f".{variant}" if variant else ""
    others = sorted(name for name in names if name.endswith(f"{suffix}.index{middle}.json"))
    return folder / _only(folder, others) if others else None


def _named_index(
    names: Collection[str], suffix: str, variant: str | None, stems: Sequence[str]
) -> str | None:
    middle = f".{variant}" if variant else ""
    # The last two are diffusers' older spellings of a variant.
    ends = (f"{suffix}.index{middle}.json", f"{suffix}{middle}.index.json", f"{middle}{suffix}.index.json")
    return next((stem + end for stem in stems for end in ends if stem + end in names), None)


def shards_of(index: Path) -> dict[str, str]:
    """The shard of every tensor, by plain file names. Raises FlashPackError for what is no sound index."""
    shards: dict[str, str] = native.call("shards", path=str(index))
    return shards


def find_weights_file(folder: Path, variant: str | None, kinds: Sequence[str]) -> Path:
    """The folder's weights of the first of these kinds that there is: a whole file, or the index of shards.

    Raises FileNotFoundError when there are none, ValueError for shards without an index and several choices.
    """
    names = {entry.name for entry in folder.iterdir() if entry.is_file()}

    def known(suffix: str, stems: Sequence[str]) -> str | None:
        single = next((name for name in single_names(suffix, variant, stems) if name in names), None)
        return single or _named_index(names, suffix, variant, stems)

    # An adapter may lie beside the model that it is for.
    adapter = next((name for suffix in kinds if (name := known(suffix, ADAPTER_STEMS))), None)
    for suffix in kinds:
        if name := known(suffix, _MODEL_STEMS):
            return folder / name
        if adapter is None:
            if index := find_index(folder, suffix, variant):
                whole = index.name.removesuffix(INDEX_SUFFIX)  # saved later, under the name of the shards
                return folder / whole if whole in names else index
            end = f".{variant}{suffix}" if variant else suffix
            if others := sorted(name for name in names if name.endswith(end)):
                return _refuse_lone_shard(folder / _only(folder, others))
    if adapter is not None:
        return folder / adapter
    raise _no_weights(folder, variant, kinds)


def _in_folder(folder: Path, variant: str | None) -> Sources:
    path = find_weights_file(folder, variant, KINDS)
    return _from_index(path) if path.suffix == ".json" else Sources([path])


def _no_weights(folder: Path, variant: str | None, kinds: Sequence[str]) -> FileNotFoundError:
    what = f"No {' or '.join(kinds)} weights"
    if variant:
        what += f" of variant {variant!r}"
    library = library_of(folder) if kinds == KINDS else None
    advice = f"; if {library} can load what is there, convert with --use-{library}" if library else ""
    return FileNotFoundError(errno.ENOENT, f"{what} in the folder{advice}", str(folder))


def _refuse_lone_shard(path: Path) -> Path:
    if _SHARD.search(path.name):
        raise ValueError(f"{path}: one shard of several, and there is no index of them")
    return path


def _only(folder: Path, names: list[str]) -> str:
    if len(names) > 1:
        raise ValueError(f"{folder}: which of these is meant? {', '.join(names)}")
    return names[0]


def _from_index(path: Path) -> Sources:
    promised = shards_of(path)
    shards = sorted(set(promised.values()))
    missing = [shard for shard in shards if not path.with_name(shard).is_file()]
    if missing:
        raise ValueError(f"{path}: {len(missing)} of {len(shards)} shards are missing: {missing}")
    return Sources([path.with_name(shard) for shard in shards], promised)


def check_promises(sources: Sources) -> None:
    """Raise ValueError unless the safetensors shards hold what the index promised."""
    if sources.promised:
        held = {file.name: set(header_names(file)) for file in sources.files}
        refuse_broken_promises(sources, held)


def refuse_broken_promises(sources: Sources, held: dict[str, set[str]]) -> None:
    """Raise ValueError when a shard (by its plain name) does not hold a tensor that the index promised."""
    broken = [name for name, shard in sources.promised.items() if name not in held[shard]]
    if broken:
        first = sources.promised[broken[0]]
        raise ValueError(
            f"{sources.files[0].parent}: {len(broken)} tensors of the index are missing from their "
            f"shards, the first is {broken[0]!r} in {first}"
        )


def header_names(path: Path) -> Iterator[str]:
    """The tensor names in a safetensors header. Raises ValueError when it is none."""
    return (name for name in _header(path) if name != _METADATA)


def header_dtypes(path: Path) -> Iterator[tuple[str, str]]:
    """(name, safetensors' dtype name or nothing) of every tensor. Raises as `header_names`."""
    for name, entry in _header(path).items():
        if name != _METADATA:
            yield name, str(entry.get("dtype", "")) if isinstance(entry, dict) else ""


def header_sizes(path: Path, dtype: str | None) -> Iterator[tuple[str, int]]:
    """(name, bytes) of every tensor, floating ones cast to `dtype`. Raises as `header_names`."""
    for name, entry in _header(path).items():
        if name != _METADATA:
            try:
                own, (start, end) = entry["dtype"], entry["data_offsets"]
                size = int(end) - int(start)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: not a safetensors file: {name!r} is {entry!r}") from error
            scale = _FLOAT_BYTES[_FLOATS[dtype]] / _FLOAT_BYTES[own] if dtype and own in _FLOAT_BYTES else 1
            yield name, int(size * scale)


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
        if length > path.stat().st_size - _HEADER_LENGTH_BYTES:
            raise ValueError(f"{path}: not a safetensors file: its header runs past its end")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"{path}: not a safetensors file: its header has {length} bytes")
        try:
            header: Any = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: not a safetensors file: its header is a JSON {type(header).__name__}")
    return header
