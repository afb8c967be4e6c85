"""Loads and saves whose system calls fail one after the other; run with faultio's library preloaded.

    python fault_programs.py FOLDER [NAME…]

Each program injects a fault at every call of its kind, checks what came of it, and is printed with the
number of faults. An assertion that fails ends the run.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
import flashpack
import torch
from faultio import Faults, at_every_call
from flashpack import deserialization
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from helpers import FIXTURES, assert_same, bits, listing
from safetensors.torch import save_file
from torch import Tensor, nn

Snapshot = dict[str, tuple[int, int, bytes]]


class Model(nn.Module):
    """Three dtypes, a buffer, a tie: 130 kB, read 4 KiB at a time."""

    def __init__(self, value: float = 0) -> None:
        super().__init__()
        self.body = nn.Linear(128, 128)
        self.half = nn.Linear(64, 128).half()
        self.head = nn.Linear(128, 128)
        self.head.weight = self.body.weight
        self.norm = nn.BatchNorm1d(8)
        with torch.no_grad():
            for tensor in self.state_dict().values():
                tensor.fill_(value)


def snapshot(model: nn.Module) -> Snapshot:
    """Identity, place and bits of every tensor."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (id(tensor), tensor.data_ptr(), bits(tensor)) for name, tensor in tensors}


def state(value: float) -> dict[str, Tensor]:
    return Model(value).state_dict()


def packed(folder: Path, value: float = 1) -> Path:
    path = folder / "model.flashpack"
    flashpack.pack_to_file(Model(value), path)
    return path


WAYS: dict[str, dict[str, Any]] = {
    "eager": {"eager": True},
    "lazy": {"eager": False},
    "verified": {"eager": False, "verify": True},
    "blocks kept": {"eager": True, "keep_flash_ref_on_model": True},
}


def load_wholly_or_not_at_all(
    fault: Faults, path: Path, way: str, values: tuple[float, ...], *errors: type[Exception]
) -> int:
    """A load that must end with one of `values` everywhere, or with one of `errors` and nothing changed."""
    model = Model()
    before = snapshot(model)
    try:
        with fault:
            flashpack.assign_from_file(model, path, **WAYS[way])
    except errors as error:
        assert snapshot(model) == before, "half a load"
        if isinstance(error, OSError):
            assert error.filename == str(path), error
    else:
        assert any(is_all(model.state_dict(), value) for value in values), "a mixture"
    return fault.acts


def is_all(tensors: dict[str, Tensor], value: float) -> bool:
    return all(bits(tensors[name]) == bits(expected) for name, expected in state(value).items())


def failing_reads(folder: Path) -> int:
    """EIO at every read: an OSError that names the file, and the model is as it was."""
    path = packed(folder)
    return sum(
        load_wholly_or_not_at_all(fault, path, way, (1,), OSError)
        for way in WAYS
        for fault in at_every_call(f"read:N:e{errno.EIO}", path)
    )


def failing_maps(folder: Path) -> int:
    """A mapping that the system refuses: OSError or MemoryError, and the model is as it was.

    The look at the page cache does without, and the load succeeds.
    """
    path = packed(folder)
    return sum(
        load_wholly_or_not_at_all(fault, path, way, (1,), kind)
        for code, kind in ((errno.EACCES, OSError), (errno.ENOMEM, MemoryError))
        for way in WAYS
        for fault in at_every_call(f"map:N:e{code}", path)
    )


def interrupted_reads(folder: Path) -> int:
    """EINTR at every read, with reads of at most 1000 bytes: as if nothing had been."""
    path = packed(folder)
    total = 0
    for fault in at_every_call(f"read:0:s1000,read:N:e{errno.EINTR}", path):
        with fault:
            loaded = flashpack.load_file(path, eager=True, verify=True)
        assert_same(loaded, state(1))
        total += fault.acts
    assert total > 100, total
    return total


def refused_direct_reads(folder: Path) -> int:
    """O_DIRECT refused at open, or at any read: through the page cache then. Other errors are errors."""
    path, tensors = folder / "model.flashpack", {"a": torch.ones(1 << 20)}
    flashpack.save_file(tensors, path)
    os.environ["FLASHPACK_DIRECT_IO"] = "1"
    opened, read = f"reopen{os.O_DIRECT:x}", f"read{os.O_DIRECT:x}"
    total = 0
    for rule in (f"{opened}:N:e{errno.EINVAL}", f"{read}:N:e{errno.EINVAL}", f"{read}:N:e{errno.EIO}"):
        for fault in at_every_call(rule, path):
            fatal = rule.endswith(f"e{errno.EIO}")
            try:
                with fault:
                    loaded = flashpack.load_file(path, eager=True)
            except OSError as error:
                assert fatal, error
                assert (error.errno, error.filename) == (errno.EIO, str(path))
            else:
                assert fault.acts == 0 or not fatal, "a read failed and nobody said so"
                assert_same(loaded, tensors)
                report = flashpack.last_load()
                assert report is not None
                # Without any fault, reads are direct: else there was nothing to refuse.
                assert report.direct == (fault.acts == 0)
            total += fault.acts
    assert total >= 9, total
    del os.environ["FLASHPACK_DIRECT_IO"]
    return total


def truncations(folder: Path) -> int:
    """The file is truncated before any read of an eager load."""
    path = packed(folder)
    whole = path.read_bytes()
    total = 0
    for length in (0, 5000, len(whole) - 1):
        for fault in at_every_call(f"read:N:t{length}", path):
            path.write_bytes(whole)
            total += load_wholly_or_not_at_all(fault, path, "eager", (1,), OSError, flashpack.FlashPackError)
    return total


def doors(path: Path) -> Iterator[tuple[str, Callable[[], dict[str, Tensor]]]]:
    """Every way to tensors, as a state dict."""

    def by_model(**options: Any) -> Callable[[], dict[str, Tensor]]:
        def load() -> dict[str, Tensor]:
            model = Model()
            flashpack.assign_from_file(model, path, **options)
            return model.state_dict()

        return load

    def by_handle() -> dict[str, Tensor]:
        with flashpack.open(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            assert float(file.metadata()["value"]) == tensors["norm.bias"][0].item(), (
                "another file's metadata"
            )
            return tensors

    def by_blocks(eager: bool) -> Callable[[], dict[str, Tensor]]:
        def load() -> dict[str, Tensor]:
            storage, footer = deserialization.read_flashpack_file(path, eager=eager)
            return dict(deserialization.iterate_from_flash_tensor(storage, footer))

        return load

    for way, options in WAYS.items():
        yield way, by_model(**options)
    yield "in place", by_model(in_place=True)
    yield "handle", by_handle
    yield "blocks", by_blocks(True)
    yield "mapped blocks", by_blocks(False)


def replacements(folder: Path) -> int:
    """Another version, in another order, takes the file's place before any read: one of the two is loaded."""
    path, other = folder / "model.flashpack", folder / "other"
    total = 0
    for name, door in doors(path):
        for fault in at_every_call("read:N:r", path, other):
            flashpack.save_file(state(1), path, {"value": "1"})
            order = sorted(state(2))
            flashpack.pack_to_file(state(2), other, name_order=order, metadata={"value": "2"})
            with fault:
                tensors = door()
            assert is_all(tensors, 1) or is_all(tensors, 2), f"{name}: a mixture"
            total += fault.acts
    return total


# Where files without a name are refused, new ones are written under temporary names.
NAMED = f"open{os.O_TMPFILE:x}:0:e{errno.EOPNOTSUPP},"
# Larger than all buffers that threads write from.
LARGE = {"a": torch.arange(11 << 20, dtype=torch.float32), "b": torch.ones(3, 1 << 18)}
SAVES: dict[str, Callable[[Path, Path], object]] = {
    "model.flashpack": lambda source, path: flashpack.pack_to_file(Model(2), path),  # noqa: ARG005
    "large.flashpack": lambda source, path: flashpack.pack_to_file(LARGE, path),  # noqa: ARG005
    "converted.flashpack": lambda source, path: convert_to_flashpack(
        source.with_suffix(".safetensors"), path
    ),
    "reverted.safetensors": lambda source, path: revert_from_flashpack(source, path),
    "reverted.pt": lambda source, path: revert_from_flashpack(source, path),
}


def saves(folder: Path) -> Iterator[tuple[Path, Callable[[], object], bytes]]:
    """For each kind of file: its path, how to write it, and what it then holds."""
    source = folder / "source.flashpack"
    flashpack.pack_to_file(Model(2), source)
    save_file({"a": torch.ones(1 << 15)}, source.with_suffix(".safetensors"))
    for name, save in SAVES.items():
        path = folder / "out" / name

        def write(save: Callable[[Path, Path], object] = save, path: Path = path) -> object:
            return save(source, path)

        write()
        yield path, write, path.read_bytes()
        path.unlink()


def failing_writes(folder: Path) -> int:
    """Every open, write, fsync, chmod, rename of a save fails in turn: OSError, old file, nothing else."""
    codes = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    total = 0
    calls = ("open", "write", "sync", "mode", "rename")
    for path, write, new in saves(folder):
        for named, call, code in itertools.product(("", NAMED), calls, codes):
            for fault in at_every_call(f"{named}{call}:N:e{code}", path.parent):
                path.write_bytes(b"old")
                caught = None
                try:
                    with fault:
                        write()
                except OSError as error:
                    caught = error
                assert listing(path.parent) == {path.name}
                if caught is None:
                    assert fault.acts == 0, f"{call} failed and nobody said so"
                    assert path.read_bytes() == new
                else:
                    assert caught.errno == code
                    # After the rename only flushing the folder can fail: what is in place is the new file.
                    flushed = caught.filename == str(path.parent)
                    assert flushed or caught.filename == str(path), caught
                    assert path.read_bytes() == (new if flushed else b"old")
                total += fault.acts
    return total


def short_writes(folder: Path) -> int:
    """Writes take a part of what they are given, one after the other fails with EINTR: the same file."""
    total = 0
    for path, write, new in saves(folder):
        part = max(5000, len(new) // 20)
        for fault in at_every_call(f"write:0:s{part},write:N:e{errno.EINTR}", path.parent):
            with fault:
                write()
            assert path.read_bytes() == new
            total += fault.acts
    return total


def refused_direct_writes(folder: Path) -> int:
    """O_DIRECT refused at any write of a large file: through the page cache then, the same file."""
    path = folder / "out" / "model.flashpack"
    flashpack.pack_to_file(LARGE, path)
    new = path.read_bytes()
    total = 0
    for fault in at_every_call(f"write{os.O_DIRECT:x}:N:e{errno.EINVAL}", path.parent):
        with fault:
            flashpack.pack_to_file(LARGE, path)
        assert path.read_bytes() == new
        total += fault.acts
    assert total >= len(new) >> 22, total
    return total


def refused_renames(folder: Path) -> int:
    """Where nothing can be renamed the new file is copied over the old one."""
    total = 0
    for path, write, new in saves(folder):
        for code in (errno.EBUSY, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP):
            for named, old in itertools.product(("", NAMED), (None, b"old" * len(new))):
                path.unlink(missing_ok=True)
                if old is not None:
                    path.write_bytes(old)
                    path.chmod(0o640)
                with Faults(f"{named}rename:0:e{code}", path.parent) as refused:
                    write()
                # A file without a name needs no renaming where there is none yet. One with a name is renamed
                # when it is locked, too.
                assert refused.acts == (2 if named else 0 if old is None else 1)
                assert path.read_bytes() == new
                assert listing(path.parent) == {path.name}
                assert old is None or path.stat().st_mode & 0o777 == 0o640
                total += refused.acts
    return total


def killed_saves(folder: Path) -> int:
    """SIGKILL before every open, write, fsync, chmod, rename: old bytes or new ones, and the rest is swept.

    What was for its owner's eyes stays so at any time.
    """
    total = 0
    os.umask(0)
    for path, write, new in saves(folder):
        for named in ("", NAMED):
            left = 0
            for number in range(1, 1000):
                path.write_bytes(b"old")
                path.chmod(0o600)
                child = os.fork()
                if child == 0:
                    with Faults(f"{named}any:{number}:k", path.parent):
                        write()
                    os._exit(0)
                killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                assert killed in (0, -9), killed
                assert path.read_bytes() in ((b"old", new) if killed else (new,)), "torn"
                for stale in listing(path.parent) - {path.name}:
                    left += 1
                    assert path.with_name(stale).stat().st_mode & 0o777 == 0o600
                    if stale.endswith("-new"):  # and not locked yet
                        os.utime(path.with_name(stale), (0, 0))
                write()
                assert listing(path.parent) == {path.name}, "not swept"
                if not killed:
                    break
                total += 1
            assert named or left == 1, "only between the new file's name and the old one's"
    return total


def killed_saves_of_shards(folder: Path) -> int:
    """SIGKILL before every call of a save in several files: the old model, the new one, or a refusal.

    The next save removes what is left. Of files without names nothing is, until they are put in place.
    """
    path = folder / "out" / "model.flashpack"
    sizes = (("70KB", "70KB"), ("10KB", "70KB"), ("1GB", "70KB"), ("70KB", "1GB"))

    def save(value: float, size: str) -> None:
        flashpack.pack_to_file(Model(value), path, max_shard_size=size)

    total = 0
    for named, (old, new) in itertools.product(("", NAMED), sizes):
        save(2, new)
        files = listing(path.parent)
        for number in range(1, 1000):
            save(1, old)
            before = listing(path.parent)
            child = os.fork()
            if child == 0:
                with Faults(f"{named}any:{number}:k", path.parent):
                    save(2, new)
                os._exit(0)
            killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert killed in (0, -9), killed
            try:
                tensors = flashpack.load_file(path, eager=True)
            except flashpack.FlashPackError:
                assert old == new, "its files have other names"
            else:
                assert is_all(tensors, 2) or (killed and is_all(tensors, 1)), "a mixture"
            strange = listing(path.parent) - before - files
            for stale in strange:
                if stale.endswith("-new"):  # and not locked yet
                    os.utime(path.with_name(stale), (0, 0))
            assert named or all(name.startswith(f".{path.name}") for name in strange), strange
            save(2, new)
            assert listing(path.parent) == files, "not swept"
            if not killed:
                break
            total += 1
    return total


def new_folders(folder: Path) -> int:
    """Each folder that a save creates is flushed to the disk, and the one that it is created in."""
    total = 0
    for number, fault in enumerate(at_every_call(f"sync:N:e{errno.EIO}", folder)):
        path = folder / str(number) / "deep" / "er" / "model.flashpack"
        path.parents[2].mkdir()
        try:
            with fault:
                flashpack.pack_to_file(Model(1), path)
        except OSError as error:
            assert error.errno == errno.EIO
            assert Path(error.filename) in (path, path.parent)
        total += fault.acts
    assert total == 4, "the file, its folder, and those in which the two new ones are"
    return total


def failing_signatures(folder: Path) -> int:
    """Each call of signing fails in turn, or the file changes before: OSError, nothing lost, nothing left."""
    path, other = folder / "out" / "model.flashpack", folder / "other"
    flashpack.pack_to_file(Model(1), path, checksum="blake3")
    flashpack.pack_to_file(Model(2), folder / "second", checksum="blake3")
    first, second = path.read_bytes(), (folder / "second").read_bytes()
    rules = {call: f"{call}:N:e{errno.EIO}" for call in ("open", "read", "write", "sync", "mode", "rename")}
    total = 0
    meanwhile = {"replaced": "read:N:r", "rewritten": f"read:N:t{len(first)}"}
    for call, rule in {**rules, **meanwhile}.items():
        place = path if call in meanwhile else path.parent
        for fault in at_every_call(rule, place, other):
            path.write_bytes(first)
            os.utime(path, (0, 0))  # so that writing to it is seen whatever the clock's steps
            other.write_bytes(second)
            caught = None
            try:
                with fault:
                    flashpack.sign_file(path, FIXTURES / "keys" / "private.pem")
            except OSError as error:
                caught = error
            assert listing(path.parent) == {path.name}
            if fault.acts == 0:
                assert caught is None
                assert flashpack.verify_file(path).signed_by
            else:
                assert caught is not None, f"{call}: nobody said so"
                flushed = caught.filename == str(path.parent)  # could not be
                assert flushed or caught.filename == str(path), caught
                kept = second if call == "replaced" else first
                assert (path.read_bytes() == kept) is not flushed
            total += fault.acts
    return total


PROGRAMS = {
    program.__name__: program
    for program in (
        *(failing_reads, failing_maps, interrupted_reads, refused_direct_reads, truncations, replacements),
        *(failing_writes, short_writes, refused_direct_writes, refused_renames, killed_saves),
        *(killed_saves_of_shards, new_folders, failing_signatures),
    )
}


def main(folder: Path, names: list[str]) -> None:
    os.environ["FLASHPACK_READ_CHUNK_BYTES"] = "4096"
    torch.set_num_threads(1)
    for name in names or PROGRAMS:
        place = folder / name
        place.mkdir()
        print(f"{name:<24}{PROGRAMS[name](place):>6} faults", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
