"""FlashPack files out of other files' tensors: some of them, those of several models, under other names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from .._core import native
from .._core.constants import SET_KEY
from .._core.names import included, is_ignored_tensor_name, listed, warn, warn_of_unmatched
from .._core.paths import StrPath, is_url, shown_url, text_path
from .._files.folder import INDEX_SUFFIX, SAFETENSORS
from .._files.sources import ModelPath, model_path, refuse_own_source, shown_path, watched, watched_size

# A tensor to take: the number of its model, its name there, and its name in the new file.
_Take = tuple[int, str, str]
_WILD = re.compile(r"[*?]")
_GROUPS = {"*": "(.*?)", "?": "(.)"}


@dataclass(frozen=True)
class _Opened:
    """An open model: its number, bytes, codecs and index, as the native side gives them.

    `codecs` is None unless all of its files are compressed.
    """

    shown: str
    model: int
    bytes: int
    codecs: list[str] | None
    index: dict[str, Any]

    @property
    def names(self) -> list[str]:
        return [record["name"] for record in self.index["index"]]

    @property
    def metadata(self) -> dict[str, str]:
        """Without the key that makes it a shard: the new file is none."""
        found = self.index.get("metadata") or {}
        return {key: value for key, value in found.items() if key != SET_KEY}

    def refuse_shard(self) -> None:
        """Raise ValueError for one shard of several, which the others would no longer fit."""
        if SET_KEY in (self.index.get("metadata") or {}):
            raise ValueError(f"{self.shown}: is one of several files: name a new file with --output")


@contextmanager
def _open(path: ModelPath) -> Iterator[_Opened]:
    text = model_path(path)
    opened = _Opened(shown_path(text), **native.call("open", path=text))
    try:
        yield opened
    finally:
        native.call("close", model=opened.model)


_KEPT = "kept"


@dataclass(frozen=True)
class Output:
    """How the new file is written: cast, digested, in files of at most so many bytes; how much it says.

    None: dtypes and checksums as they were, one file. `compress` is that of the sources unless it is given.
    """

    dtype: str | None = None
    checksum: str | None = None
    shard_bytes: int | None = None
    silent: bool | None = True
    compress: str | None = _KEPT

    def write(
        self,
        sources: Sequence[_Opened],
        takes: Collection[_Take],
        destination: str,
        metadata: Mapping[str, str],
        *,
        replaces: bool = False,
    ) -> bool:
        """Write the tensors to `destination`; whether it did: there are casts that only torch makes.

        If that `replaces` the first source, raises OSError if something else has replaced it meanwhile.
        """
        if any("signature" in source.index for source in sources):
            warn(f"{shown_path(destination)}: signatures are not kept: sign the new file")
        size = sum(source.bytes for source in sources)
        done = watched(
            "repack",
            "Writing",
            silent=self.silent,
            size=watched_size(size, *(source.shown for source in sources)),
            models=[source.model for source in sources],
            tensors=takes,
            destination=destination,
            metadata=metadata,
            dtype=self.dtype,
            checksum=self.checksum or _checksum_of(sources),
            shard_bytes=self.shard_bytes,
            compress=_compression_of(sources) if self.compress == _KEPT else self.compress,
            replaces=replaces,
        )
        return done is not None


def _checksum_of(sources: Sequence[_Opened]) -> str | None:
    """The algorithm that all sources share, if they do; None for the default."""
    found = {(source.index.get("checksums") or {}).get("algorithm") for source in sources}
    algorithm: str | None = found.pop() if len(found) == 1 else None
    return algorithm if algorithm in ("xxh3_64", "blake3") else None


def _compression_of(sources: Sequence[_Opened]) -> str | None:
    """How the sources are compressed, if all are: "small" if one is, as others may not have shrunk."""
    codecs: set[str] = set()
    for source in sources:
        if source.codecs is None:
            return None
        codecs.update(source.codecs)
    return "small" if any(codec.startswith("zstd") for codec in codecs) else "fast"


def recode(path: str, destination: str, compress: str | None, silent: bool | None) -> bool:
    """Store the payload of a FlashPack file in another way; checksums and a signature stay.

    Returns whether it did: shards are written anew.
    """
    done = watched("recode", "Writing", silent=silent, path=path, destination=destination, compress=compress)
    return done is not None


def rewrite(path: str, destination: str, ignore: Mapping[str, tuple[str, ...]], output: Output) -> bool:
    """Write a model anew without the tensors to ignore; whether it did, as `Output.write`."""
    with _open(path) as source:
        warn_of_unmatched(ignore, source.names)
        takes = [(0, name, name) for name in source.names if not is_ignored_tensor_name(name, **ignore)]
        return output.write([source], takes, destination, source.metadata)


def extract(path: ModelPath, destination: StrPath, patterns: Iterable[str], output: Output) -> str:
    """Write the tensors whose names one of the patterns fits to a file of their own; return its path.

    Raises ValueError for a pattern that fits none and for a destination that is a source.
    """
    target = _new(destination, [path])
    with _open(path) as source:
        kept = included(source.shown, source.names, tuple(patterns), "")
        output.write([source], [(0, name, name) for name in kept], target, source.metadata)
    return target


def merge(paths: Sequence[ModelPath], destination: StrPath, output: Output) -> str:
    """Write the tensors of all models to one file; return its path.

    Where metadata differ, those of the first stay, with a warning. Raises ValueError for one model alone, for
    a name that two models hold and for a destination that is a source.
    """
    target = _new(destination, paths)
    with ExitStack() as stack:
        sources = [stack.enter_context(_open(path)) for path in paths]
        if len(sources) < 2:
            raise ValueError(f"{target}: is the new file, and there is one model alone: name two or more")
        owners: dict[str, _Opened] = {}
        metadata: dict[str, str] = {}
        for source in sources:
            for name in source.names:
                if (other := owners.setdefault(name, source)) is not source:
                    raise ValueError(
                        f"{source.shown}: holds the tensor {name!r}, and so does {other.shown}: "
                        "rename the tensors of one of them first"
                    )
            if clashes := [
                key for key, value in source.metadata.items() if metadata.get(key, value) != value
            ]:
                warn(f"{source.shown}: metadata that the files before have otherwise: {listed(clashes)}")
            metadata = {**source.metadata, **metadata}
        takes = [(number, name, name) for number, source in enumerate(sources) for name in source.names]
        output.write(sources, takes, target, metadata)
    return target


def rename(
    path: ModelPath, pairs: Iterable[tuple[str, str]], destination: StrPath | None, output: Output
) -> tuple[str, int]:
    """Write the model with other names; return the path, and how many tensors have another name.

    Each pair is a pattern and what takes its place; each `*` and `?` there stands for what it fitted. A
    pattern without these is the name of a tensor, or of a module, which all below it follow. The first
    pattern that fits a name renames it. Without a destination the file itself is replaced. Raises ValueError
    for a pattern that fits no name, and for two tensors of one new name.
    """
    target = _replaceable(path) if destination is None else _new(destination, [path])
    rules = [(old, _Renaming(old, new)) for old, new in pairs]
    with _open(path) as source:
        if destination is None:
            source.refuse_shard()
        for old, rule in rules:
            if not any(rule.of(name) is not None for name in source.names):
                included(source.shown, source.names, [old], "")  # says what was perhaps meant
                # Brackets and dots at the end count in other commands' patterns alone.
                raise ValueError(f"{source.shown}: {old!r} fits none of {len(source.names)} tensors")
        takes: list[_Take] = []
        owners: dict[str, str] = {}
        for name in source.names:
            new = next((new for _, rule in rules if (new := rule.of(name)) is not None), name)
            if (other := owners.setdefault(new, name)) != name:
                raise ValueError(f"{source.shown}: {other!r} and {name!r} would both be named {new!r}")
            takes.append((0, name, new))
        output.write([source], takes, target, source.metadata, replaces=destination is None)
    return target, sum(old != new for _, old, new in takes)


class _Renaming:
    """A pattern, and what takes the place of names that it fits."""

    def __init__(self, old: str, new: str) -> None:
        pattern = "".join(_GROUPS.get(part) or re.escape(part) for part in _parts(old))
        self._is_plain = not _WILD.search(old)
        self._pattern = re.compile(pattern + r"(\..+)?" if self._is_plain else pattern, re.DOTALL)
        self._new = _parts(new)
        given, wanted = (len(_WILD.findall(text)) for text in (old, new))
        if wanted > given:
            raise ValueError(
                f"{new!r} has {wanted} of * and ?, but {old!r} only {given}: "
                "each takes what one there has fitted"
            )

    def of(self, name: str) -> str | None:
        """The new name; None if the pattern does not fit."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        if self._is_plain:
            return "".join(self._new) + (match[1] or "")
        fitted = iter(match.groups())
        return "".join(next(fitted) if _WILD.fullmatch(part) else part for part in self._new)


def _parts(text: str) -> list[str]:
    return re.split(r"([*?])", text)


def edit_metadata(
    path: ModelPath,
    changes: Mapping[str, str],
    removed: Collection[str],
    destination: StrPath | None,
    output: Output,
) -> str:
    """Write the model with other metadata; return the path. Without a destination the file is replaced.

    Raises ValueError for a key to remove that is not there, and for the key that makes a file a shard.
    """
    if SET_KEY in (*changes, *removed):
        raise ValueError(f"{SET_KEY} is not to be edited: it says to which shards a file belongs")
    target = _replaceable(path) if destination is None else _new(destination, [path])
    with _open(path) as source:
        if destination is None:
            source.refuse_shard()
        metadata = source.metadata
        if absent := [key for key in removed if key not in metadata]:
            there = f"there are {listed(list(metadata))}" if metadata else "there are none"
            raise ValueError(f"{source.shown}: has no metadata {listed(absent)}; {there}")
        for key in removed:
            del metadata[key]
        takes = [(0, name, name) for name in source.names]
        output.write([source], takes, target, {**metadata, **changes}, replaces=destination is None)
    return target


def _replaceable(path: ModelPath) -> str:
    """The path of a FlashPack file that a new one may take the place of."""
    text = model_path(path)
    native.call("expect", path=text)
    if is_url(text) or not Path(text).is_file() or text.endswith(INDEX_SUFFIX):
        raise ValueError(f"{shown_path(text)}: is not one file on a disk: name a new file with --output")
    return text


def _new(destination: StrPath, sources: Sequence[ModelPath]) -> str:
    """`destination`, unless it is a source or the name of something else than a FlashPack file."""
    text = text_path(destination)
    shown = shown_url(text) if is_url(text) else text
    if PurePath(shown).suffix.lower() == SAFETENSORS:
        raise ValueError(f"{shown}: FlashPack files are written here; `flashpack revert` makes safetensors")
    if not is_url(text) and Path(text).is_dir():
        raise ValueError(f"{text}: is a folder: name a file in it, such as {Path(text, 'new.flashpack')}")
    refuse_own_source(text, sources)
    return text
