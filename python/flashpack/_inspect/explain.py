"""What a load would do, told without doing it. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .._core import native
from .._core.names import name_tuple
from .._core.text import human_duration, size_text
from .._files.sources import ModelPath, model_path, shown_path

_MODES = {
    "map": "map the file",
    "read": "read into memory",
    "stage": "stage to the device",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """A load that has been planned and not run: sizes in bytes, times in seconds, rates in bytes per second.

    Source: `cached_part` is the part of the file in the page cache, estimated from 64 samples, None where it
    is unknown; `direct` says that reads go past it, `why` the reason; `algorithm` is that of
    the checksums, None for a file without.

    Work: `mode` is "map", "read" or "stage"; each of `threads` takes `task_bytes` at a time, in chunks of up
    to `chunk_bytes`; `staging_buffers` are `staging_bytes` together; `read_ahead` tells whether a mapping is
    read in the background and why, None for other loads.

    Bound: what was just measured (`sample_bytes` of the file read as the load would, checksums and copies in
    memory) makes `seconds` the least a load can take here and now, and `limit` what bounds it: "disk", "page
    cache", "checksums", or None for a load that reads nothing before it returns. For a mapping of a file that
    is not cached, it bounds the time until every page was touched. The link to a device is not measured.
    """

    path: str
    device: str
    file_bytes: int
    payload_bytes: int
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
    threads: int
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

    def __str__(self) -> str:
        return "\n".join(f"{label:<12}{text}".rstrip() for label, text in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        count = f"{self.tensors} tensors of {size_text(self.tensor_bytes)}"
        yield "load", f"{count} to {self.device}: {_MODES[self.mode]}"
        yield "file", f"{self.path}, {size_text(self.file_bytes)}, {self._cached()}"
        yield "reads", f"{'past' if self.direct else 'through'} the page cache: {self.why}"
        if self.chunks:
            yield "work", self._work()
        yield "checksums", self._checksums()
        if self.memory_bytes:
            yield "memory", f"{size_text(self.memory_bytes)} for the tensors"
        if self.staging_buffers:
            each = size_text(self.staging_bytes / self.staging_buffers)
            yield "staging", f"{self.staging_buffers} buffers of {each}: {size_text(self.staging_bytes)}"
        if self.read_ahead:
            ahead, why = self.read_ahead
            yield "read-ahead", f"{'yes' if ahead else 'no'}: {why}"
        yield "bound", self._bound()
        for line in self._measured():
            yield "", line

    def _cached(self) -> str:
        if self.cached_part is None:
            return "page-cache residency unknown"
        return f"about {self.cached_part:.0%} of it in the page cache"

    def _work(self) -> str:
        chunks = f"{self.chunks} chunks of up to {size_text(self.chunk_bytes)}"
        threads = f"{self.threads} threads that take {size_text(self.task_bytes)} at a time"
        return f"{size_text(self.read_bytes)} in {chunks}, by {threads}"

    def _checksums(self) -> str:
        if self.algorithm is None:
            return "the file has none this library knows: nothing can be verified"
        if not self.verified_chunks:
            return f"{self.algorithm}, not looked at by this load"
        return f"{self.algorithm}: {self.verified_chunks} of {self.chunks} chunks verified"

    def _bound(self) -> str:
        if self.limit is None:
            return "none: nothing is read before a tensor is touched" if self.mapped_bytes else "none"
        until = "to touch every page" if self.mode == "map" and not self.read_bytes else "to load"
        link = "; the link to the device is not measured" if self.mode == "stage" else ""
        return f"at least {human_duration(self.seconds)} {until}, for the {self.limit}{link}"

    def _measured(self) -> Iterator[str]:
        if self.source_rate is not None:
            what = "disk" if self.limit == "disk" else "reading"
            rate = f"{size_text(self.source_rate)}/s, measured on {size_text(self.sample_bytes)} of the file"
            yield f"{what}: {human_duration(self.source_seconds)} at {rate}"
        if self.checksum_rate is not None:
            rate = f"{size_text(self.checksum_rate)}/s, measured in memory"
            yield f"checksums: {human_duration(self.checksum_seconds)} at {rate}"
        yield f"(a copy in memory: {size_text(self.copy_rate)}/s)"


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
    staged = target.partition(":")[0] == "cuda"
    told = native.call("explain", path=text, staged=staged, names=wanted, eager=eager, verify=verify)
    ahead = told["work"].pop("read_ahead")
    return Explanation(
        path=shown_path(text),
        device=target,
        read_ahead=None if ahead is None else (ahead[0], ahead[1]),
        **told["source"],
        **told["work"],
        **told["bound"],
    )


def _device_text(device: object) -> str:
    if isinstance(device, int):
        return f"cuda:{device}"
    kind, colon, index = (text := str(device)).partition(":")
    if not kind.isidentifier() or (colon and not index.isdecimal()):
        raise ValueError(f"{device!r} is no device: expected cpu, cuda, cuda:0 or the like")
    return text
