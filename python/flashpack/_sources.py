"""Which weight files a path stands for: one file, or what a folder's index lists. Needs no torch."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._model_folder import SAFETENSORS, is_plain_name, library_of, weights_name

KINDS = (SAFETENSORS, ".bin")  # safetensors go before what is pickled
_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
_METADATA = "__metadata__"  # the one key of a header that is no tensor
_HEADER_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class Sources:
    """Weight files of one kind. `promised` maps each tensor an index lists to the shard it names."""

    files: list[Path]
    promised: dict[str, str] = field(default_factory=dict)

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


def single_names(suffix: str, variant: str | None) -> list[str]:
    """The names that whole checkpoints go by, the likeliest first."""
    return [weights_name(variant, suffix, stem) for stem in _STEMS]


def find_index(folder: Path, suffix: str, variant: str | None) -> Path | None:
    """The index of sharded weights of one kind. Raises ValueError when there are several."""
    names = {entry.name for entry in folder.iterdir()}
    middle = f".{variant}" if variant else ""
    for stem in _STEMS:
        # The last two are diffusers' older spellings of a variant.
        for end in (
            f"{suffix}.index{middle}.json",
            f"{suffix}{middle}.index.json",
            f"{middle}{suffix}.index.json",
        ):
            if f"{stem}{end}" in names:
                return folder / f"{stem}{end}"
    others = sorted(name for name in names if name.endswith(f"{suffix}.index{middle}.json"))
    return folder / _only(folder, others) if others else None


def shards_of(index: Path) -> dict[str, str]:
    """The shard of every tensor, by plain file names. Raises ValueError for what is no sound index."""
    promised = _weight_map(index)
    for shard in promised.values():
        if not is_plain_name(shard):
            raise ValueError(f"{index}: {shard!r} is not a plain file name")
    return promised


def _in_folder(folder: Path, variant: str | None) -> Sources:
    names = {entry.name for entry in folder.iterdir() if entry.is_file()}
    for suffix in KINDS:
        for name in single_names(suffix, variant):
            if name in names:
                return Sources([folder / name])
        index = find_index(folder, suffix, variant)
        if index:
            return _from_index(index, names)
        others = sorted(name for name in names if name.endswith(f".{variant}{suffix}" if variant else suffix))
        if others:
            return Sources([_refuse_lone_shard(folder / _only(folder, others))])
    raise _no_weights(folder, variant)


def _no_weights(folder: Path, variant: str | None) -> FileNotFoundError:
    what = "No .safetensors or .bin weights"
    if variant:
        what += f" of variant {variant!r}"
    library = library_of(folder)
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


def _from_index(path: Path, present: set[str]) -> Sources:
    promised = shards_of(path)
    shards = sorted(set(promised.values()))
    missing = [shard for shard in shards if shard not in present]
    if missing:
        raise ValueError(f"{path}: {len(missing)} of {len(shards)} shards are missing: {missing}")
    return Sources([path.with_name(shard) for shard in shards], promised)


def _weight_map(path: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without end
        raise ValueError(f"{path}: not a valid index: {error}") from None
    weights = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, str) for v in weights.values()):
        raise ValueError(f"{path}: not a valid index: it has no weight_map of tensor names to file names")
    return weights


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
