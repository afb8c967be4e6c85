"""What a load would do, told without doing it. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .._core import native
from .._core.names import name_tuple
from .._files.sources import ModelPath, model_path, shown_path
from .._load import html
from .._load.report import Traffic

_LABEL = 12  # characters at the beginning of a line of the text


@dataclass(frozen=True, slots=True)
class Explanation:
    """A load that has been planned and not run: sizes in bytes, times in seconds, rates in bytes per second.

    Source: the payload is stored in `stored_bytes` by `codecs`, none of which if it is not compressed;
    `cached_part` is the part of the file in the page cache, estimated from 64 samples, None where it
    is unknown; `direct` says that reads go past it, `why` the reason; `traffic` is what requests to a store
    the sample took, None for files, `note` what is peculiar about reading from it, such as a server that
    knows no ranges; `algorithm` is that of the checksums, None for a file without.

    Work: `mode` is "map", "read" or "stage"; each of `threads` takes `task_bytes` at a time, in chunks of up
    to `chunk_bytes`; `staging_buffers` are `staging_bytes` together; `read_ahead` tells whether a mapping is
    read in the background and why, None for other loads.

    Bound: what was just measured (`sample_bytes` of the file read as the load would, checksums and copies in
    memory) makes `seconds` the least a load can take here and now, and `limit` what bounds it: "disk",
    "network", "page cache", "checksums", or None for a load that reads nothing before it returns. For a
    mapping of a file that is not cached, it bounds the time until every page was touched. The link to a
    device is not measured.
    """

    path: str
    device: str
    file_bytes: int
    payload_bytes: int
    stored_bytes: int
    codecs: list[str]
    cached_part: float | None
    direct: bool
    why: str
    algorithm: str | None
    mode: str
    tensors: int
    tensor_bytes: int
    memory_bytes: int
    mapped_bytes: int
    read_bytes: int
    traffic: Traffic | None
    note: str | None
    threads: int
    max_threads: int
    task_bytes: int
    chunks: int
    chunk_bytes: int
    verified_chunks: int
    verified_bytes: int
    staging_buffers: int
    staging_bytes: int
    read_ahead: tuple[bool, str] | None
    sample_bytes: int
    source_rate: float | None
    checksum_rate: float | None
    copy_rate: float
    source_seconds: float
    checksum_seconds: float
    seconds: float
    limit: str | None
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        rows = [(line[:_LABEL].strip(), line[_LABEL:]) for line in self.text.splitlines()]
        return html.titled(f"load of {self.path}", html.table(rows))


def explain(
    path: ModelPath,
    device: object = "cpu",
    *,
    names: Iterable[str] | None = None,
    eager: bool | None = None,
    verify: bool | None = None,
) -> Explanation:
    """What `load_file` with these arguments would do, and how long it must take at least.

    Loads nothing; it reads up to 64 MiB of the file to time it, which takes a fraction of a second. `device`
    is whatever torch takes for one; a load to any but CUDA is one to the CPU, from where torch copies. Raises
    what `load_file` raises before it reads.
    """
    text, target = model_path(path), _device_text(device)
    wanted = None if names is None else list(dict.fromkeys(name_tuple("names", names)))
    told = native.call("explain", path=text, device=target, names=wanted, eager=eager, verify=verify)
    facts, ahead = told["facts"], told["facts"]["read_ahead"]
    facts.update(path=shown_path(text), read_ahead=ahead and (ahead[0], ahead[1]))
    facts.update(traffic=Traffic.of(facts["traffic"]))
    return Explanation(**facts, text=told["text"])


def _device_text(device: object) -> str:
    if isinstance(device, int):
        return f"cuda:{device}"
    kind, colon, index = (text := str(device)).partition(":")
    if kind == "gpu" or not kind.isidentifier() or (colon and not index.isdecimal()):
        raise ValueError(f"{device!r} is no device: expected cpu, cuda, cuda:0 or the like")
    return text
