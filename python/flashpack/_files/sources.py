"""Which weight files a path stands for. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from .._core import native
from .._core.constants import MAGIC
from .._core.errors import local_path
from .._core.paths import SEPARATOR, StrPath, has_url, is_url, refuse_source, shown_url, text_path
from .._core.progress import INLINE_BYTES, Silent, run
from .folder import INDEX_SUFFIX, SAFETENSORS, SUFFIX, index_path

_SHARD = re.compile(r"-\d{5}-of-\d{5}(\.\w+)$")
KINDS = (SAFETENSORS, ".bin")  # what is converted: safetensors go before what is pickled
# A file, a folder, the index of shards, the name they were saved under, or a list of files.
ModelPath: TypeAlias = StrPath | Sequence[StrPath]


def model_path(path: ModelPath) -> str:
    """`path` as the native side takes it. Raises TypeError, ValueError for no files."""
    if not isinstance(path, list | tuple):
        return text_path(path)  # type: ignore[arg-type] # or it raises TypeError
    if not path:
        raise ValueError("the list of files is empty")
    return SEPARATOR.join(text_path(each) for each in path)


def resolved_path(path: ModelPath) -> str:
    """The file that a load opens for `path`, or all of a list, as the native side takes them.

    URLs of hf:// get the commit that their revision is now.

    Raises as `model_path` and `find_weights`.
    """
    return SEPARATOR.join(
        local_path(native.call("resolve", path=each)) for each in model_path(path).split(SEPARATOR)
    )


def pinned(source: StrPath) -> StrPath:
    """`source`; of hf:// with the commit that the revision is now, so that all its files are of one."""
    return resolved_path(source) if is_url(source) else source


def shown_path(text: str) -> str:
    """What `model_path` gave, for people: URLs without their secrets."""
    return ", ".join(shown_url(each) if is_url(each) else each for each in text.split(SEPARATOR))


def size_of(text: str) -> int:
    """Bytes of the files of what `model_path` gave; of anything else no less than what is a long load."""
    if has_url(text):
        return INLINE_BYTES
    files = [Path(each) for each in text.split(SEPARATOR)]
    whole = all(file.is_file() and file.suffix != ".json" for file in files)
    return sum(file.stat().st_size for file in files) if whole else INLINE_BYTES


def watched_size(size: int, *paths: str) -> int:
    """`size`, for `run`; no less than what it watches if a path is a URL, as servers may be slow."""
    return max(size, INLINE_BYTES) if any(map(has_url, paths)) else size


def watched(op: str, label: str, *, silent: Silent, size: int | None = None, **fields: Any) -> Any:
    """The result of a native operation with these fields, with progress as `run` shows it.

    `size` defaults to the bytes of the models at `path` and `other`.
    """
    paths = {name: fields[name] for name in ("path", "other", "destination") if name in fields}
    if size is None:
        size = sum(size_of(text) for name, text in paths.items() if name != "destination")
    size = watched_size(size, *paths.values())
    return run(lambda counter: native.call(op, counter, **fields), label=label, size=size, silent=silent)


def shards_of(index: Path) -> dict[str, str]:
    """The shard of every tensor, by plain file names. Raises FlashPackError for what is no sound index."""
    shards: dict[str, str] = native.call("shards", path=str(index))
    return shards


def files_of(weights: Path) -> list[Path]:
    """`weights`, or the shards that it lists if it is an index."""
    if not weights.name.endswith(".json"):
        return [weights]
    return [weights.with_name(name) for name in sorted(set(shards_of(weights).values()))]


def refuse_own_source(destination: str, sources: Sequence[ModelPath]) -> None:
    """Raise ValueError when `destination` is a file of one of `sources`, or what such shards were saved as.

    Raises as `resolved_path` for sources that are not there.
    """
    for text in (text for path in sources for text in model_path(path).split(SEPARATOR)):
        if is_url(destination) and is_url(text) and destination in _objects_behind(text):
            raise ValueError(f"{shown_url(destination)}: the destination is its own source")
        if not is_url(destination) and not is_url(text):
            refuse_source(Path(destination), _files_behind(Path(resolved_path(text))))


def _objects_behind(url: str) -> list[str]:
    named = url.removesuffix(INDEX_SUFFIX)
    shards = [] if named == url else native.call("shards", path=url).values()
    return [named, named + INDEX_SUFFIX, *(f"{url.rpartition('/')[0]}/{name}" for name in shards)]


def _files_behind(weights: Path) -> list[Path]:
    """The files of a model, and what replaces some of them: a save under the name that its shards have."""
    files = [weights, *files_of(weights)]
    names = {_SHARD.sub(r"\1", each.name.removesuffix(INDEX_SUFFIX)) for each in files}
    return [*files, *(weights.with_name(name) for name in names)]


def are_safetensors(weights: Path) -> bool:
    """Whether a weight file, or the shards of an index, are safetensors."""
    return files_of(weights)[0].suffix.lower() == SAFETENSORS


def is_flashpack(path: Path) -> bool:
    """Whether it is FlashPack: a file that ends as those do, or shards, by their index or its name.

    A file that is called .safetensors is taken at its word, and not opened.
    """
    if path.is_dir():  # "." has no name to which an index's suffix could be added
        return False
    index = path if path.name.endswith(INDEX_SUFFIX) else index_path(path)
    if index.is_file() and (index == path or not path.exists()):
        return index.name.endswith(SUFFIX + INDEX_SUFFIX)
    if path.suffix.lower() == SAFETENSORS or not path.is_file() or path.stat().st_size < len(MAGIC):
        return False
    with path.open("rb") as file:
        file.seek(-len(MAGIC), os.SEEK_END)
        return file.read() == MAGIC


def find_weights(folder: Path, variant: str | None, kinds: Sequence[str]) -> Path:
    """The folder's weights of the first of these kinds that there is: a whole file, or the index of shards.

    Raises FileNotFoundError when there are none, ValueError for shards without an index and several choices.
    """
    return Path(local_path(native.call("find", path=str(folder), variant=variant, kinds=kinds)))


def find_url(url: str, variant: str | None, kinds: Sequence[str]) -> str:
    """`url`, or of a folder there its weights, as `find_weights` finds them. Raises as that."""
    found: str = native.call("find", path=url, variant=variant, kinds=kinds)
    return found


def find_weights_to_convert(path: Path, variant: str | None) -> Path:
    """The weights that a conversion of a file or a folder reads, which may be the index of shards.

    Raises as `find_weights`, and FlashPackError for shards that are missing and files that nothing reads.
    """
    return Path(local_path(native.call("source", path=str(path), variant=variant)))
