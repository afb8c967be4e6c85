"""torch.distributed.checkpoint: each rank saves a file of its own, any number of ranks load them.

A checkpoint is a folder: the files of the ranks, and `distributed.json`, written last, which says what lies
where and holds what is no tensor. Nothing is pickled.
"""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from .._core.errors import FlashPackError
from .._core.names import clipped
from .._core.paths import StrPath, is_url, shown_url
from .._files.new_file import replacing
from .._files.opened import OpenModel
from .._files.plain import from_json, to_json
from .._load.load import described, load_file
from .._save.pack import save_file
from ._saving import folder_to_save

__all__ = ["FlashPackStorageReader", "FlashPackStorageWriter"]

_INDEX = "distributed.json"
# A rank's file, or one of its shards, or their index.
_OF_A_RANK = re.compile(r"([0-9a-f]{12}-\d{5,})(-\d{5}-of-\d{5})?(\.flashpack)(\.index\.json)?")
# What is read into memory before it is copied into the state dict, in bytes; a tensor at least.
_BATCH_BYTES = 512 << 20


class _Stored(NamedTuple):
    """Where a chunk lies: the file below the folder, its name there, and its shape."""

    file: str
    name: str
    sizes: tuple[int, ...]


def _offsets(index: MetadataIndex) -> tuple[int, ...] | None:
    return None if index.offset is None else tuple(index.offset)


class _Folder:
    """The folder of a checkpoint, which torch calls its id."""

    path: Path

    def __init__(self, path: StrPath) -> None:
        self.reset(path)

    def reset(self, checkpoint_id: StrPath | None = None) -> None:
        """Another folder from now on, if one is given."""
        if checkpoint_id is not None:
            if is_url(checkpoint_id):
                raise ValueError(
                    f"{shown_url(checkpoint_id)}: checkpoints of several ranks are in local folders"
                )
            self.path = Path(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: StrPath) -> bool:
        """Whether a folder can have this path."""
        return not is_url(checkpoint_id)

    def prepare_local_plan(self, plan: Any) -> Any:
        """Nothing to prepare."""
        return plan

    def prepare_global_plan(self, plans: Any) -> Any:
        """Nothing to prepare."""
        return plans


class FlashPackStorageWriter(_Folder, StorageWriter):
    """`dcp.save(state_dict, storage_writer=FlashPackStorageWriter(folder))`.

    What is no tensor has to be plain, as in `flashpack.save_checkpoint`. A checkpoint that was there before
    stays until the new one is whole. `options` are those of `save_file`.
    """

    def __init__(self, path: StrPath, **options: Any) -> None:
        super().__init__(path)
        self._options = options

    def set_up_storage_writer(self, *_: Any, **kwargs: Any) -> None:
        """Make the folder. Raises ValueError for ranks that do not save together: there is one index."""
        if not kwargs.get("use_collectives", True) and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(f"{self.path}: ranks save together: leave use_collectives=True")
        self._rank = kwargs.get("rank", 0)
        folder_to_save(self.path).mkdir(parents=True, exist_ok=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's tensors to its file. Raises ValueError for what is neither tensor nor plain."""
        # No checkpoint had this name before. A planner may give a plan of an earlier save, and its data.
        file = f"{uuid.uuid4().hex[:12]}-{self._rank:05d}.flashpack"
        tensors: dict[str, torch.Tensor] = {}
        results = []
        for item in plan.items:
            name, data = item.index.fqn, planner.resolve_data(item)
            if not isinstance(data, torch.Tensor):
                results.append(WriteResult(item.index, 0, _plain(name, data)))
                continue
            offsets = _offsets(item.index) or ()
            name = f"{name}@{','.join(map(str, offsets))}" if any(offsets) else name
            while name in tensors or name.endswith("_extra_state"):  # which no record ends as
                name += "#"
            tensors[name] = data.detach()
            stored = _Stored(file, name, tuple(data.shape))
            results.append(WriteResult(item.index, data.nbytes, stored))
        if tensors:
            save_file(tensors, self.path / file, **self._options)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write `distributed.json`, by which the checkpoint is whole, and remove the files of one before."""
        written = [result for of_rank in results for result in of_rank]
        index = {
            "tensors": {
                name: _described(held)
                for name, held in metadata.state_dict_metadata.items()
                if isinstance(held, TensorStorageMetadata)
            },
            "chunks": [
                (each.index.fqn, _offsets(each.index), tuple(each.storage_data))
                for each in written
                if isinstance(each.storage_data, _Stored)
            ],
            "values": {
                each.index.fqn: each.storage_data for each in written if isinstance(each.storage_data, str)
            },
            "planner": metadata.planner_data,
        }
        with replacing(self.path / _INDEX) as file:
            file.write(to_json(index, "the checkpoint").encode())
        kept = {stored[0] for _, _, stored in index["chunks"]}
        for path in self.path.iterdir():
            if (name := _OF_A_RANK.fullmatch(path.name)) and name[1] + name[3] not in kept:
                path.unlink()


def _plain(name: str, data: io.BytesIO) -> str:
    """What torch has pickled as JSON."""
    data.seek(0)
    try:
        return to_json(torch.load(data, weights_only=True), name)
    except Exception as error:  # noqa: BLE001 (the unpickler fails in many ways)
        raise ValueError(f"{name}: is neither a tensor nor plain: {clipped(str(error))}") from None


def _described(held: TensorStorageMetadata) -> Any:
    chunks = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in held.chunks]
    return held.properties.dtype, tuple(held.size), chunks


class FlashPackStorageReader(_Folder, StorageReader):
    """`dcp.load(state_dict, storage_reader=FlashPackStorageReader(path))`: each rank reads its own parts.

    `path` is a folder that FlashPackStorageWriter wrote, or any model that `load_file` loads, of whole
    tensors. Bytes are verified as by `load_file(eager=True)`; `verify=False` leaves that out.
    """

    def __init__(self, path: StrPath, *, verify: bool | None = None) -> None:
        super().__init__(path)
        self._verify = verify

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """What the checkpoint holds. Raises FlashPackError for an unsound one, OSError for none."""
        index = self.path / _INDEX
        return _read_index(index) if index.is_file() else _of_model(self.path)

    def set_up_storage_reader(self, metadata: Metadata, *_: Any, **__: Any) -> None:
        """Take the places of the chunks."""
        self._places: dict[MetadataIndex, _Stored | str] = metadata.storage_data

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the parts that this rank needs, and copy them to where the planner wants them."""
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                self._read_value(item, planner)
        for file, items in self._batches(plan):
            slices = {name: _cuts(item, self._places[item.storage_index]) for name, item in items.items()}
            given = {name: cuts for name, cuts in slices.items() if cuts}
            loaded = load_file(
                self.path / file, names=list(items), slices=given, eager=True, verify=self._verify
            )
            for name, item in items.items():
                target = planner.resolve_tensor(item).detach()
                target.copy_(loaded[name])
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_value(self, item: ReadItem, planner: LoadPlanner) -> None:
        text, data = self._places[item.storage_index], io.BytesIO()
        torch.save(from_json(str(text), str(self.path), {}), data)
        data.seek(0)
        planner.load_bytes(item, data)

    def _batches(self, plan: LoadPlan) -> Iterator[tuple[str, dict[str, ReadItem]]]:
        """Files and what to read of them at a time, each name once."""
        batches: dict[str, dict[str, ReadItem]] = {}
        sizes: dict[str, int] = {}
        for item in plan.items:
            stored = self._places[item.storage_index]
            if not isinstance(stored, _Stored):
                continue
            batch = batches.setdefault(stored.file, {})
            if stored.name in batch or sizes.get(stored.file, 0) > _BATCH_BYTES:
                yield stored.file, batches.pop(stored.file)
                batch, sizes[stored.file] = batches.setdefault(stored.file, {}), 0
            batch[stored.name] = item
            sizes[stored.file] = sizes.get(stored.file, 0) + 8 * item.lengths.numel()
        yield from batches.items()


def _cuts(item: ReadItem, stored: _Stored | str) -> list[tuple[int, int, int]]:
    """The part of a chunk that is wanted, as `slices=` takes it; empty for all of it."""
    assert isinstance(stored, _Stored)
    parts = zip(item.storage_offsets, item.lengths, stored.sizes, strict=True)
    return [(dim, start, start + length) for dim, (start, length, size) in enumerate(parts) if length != size]


def _read_index(path: Path) -> Metadata:
    index = from_json(path.read_text(), str(path), {})
    try:
        held: dict[str, Any] = {
            name: TensorStorageMetadata(
                TensorProperties(dtype=dtype),
                torch.Size(size),
                [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in chunks],
            )
            for name, (dtype, size, chunks) in index["tensors"].items()
        }
        places: dict[MetadataIndex, Any] = {
            MetadataIndex(name, None if offsets is None else torch.Size(offsets)): _Stored(*stored)
            for name, offsets, stored in index["chunks"]
        }
        for name, text in index["values"].items():
            held[name], places[MetadataIndex(name)] = BytesStorageMetadata(), text
        if any(
            Path(stored.file).name != stored.file for stored in places.values() if isinstance(stored, _Stored)
        ):
            raise ValueError("a file outside of the folder")
        return Metadata(held, planner_data=index["planner"], storage_data=places)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FlashPackError(f"{path}: is not the index of a checkpoint: {clipped(str(error))}") from None


def _of_model(path: Path) -> Metadata:
    """The metadata of a model whose tensors are whole."""
    held: dict[str, Any] = {}
    places = {}
    for name, each in described(OpenModel(str(path)).footer, {}).items():
        zeros, chunk = torch.Size([0] * each.dim()), each.shape
        properties = TensorProperties(dtype=each.dtype)
        held[name] = TensorStorageMetadata(properties, chunk, [ChunkStorageMetadata(zeros, chunk)])
        places[MetadataIndex(name, zeros)] = _Stored("", name, tuple(chunk))
    return Metadata(held, storage_data=places)
