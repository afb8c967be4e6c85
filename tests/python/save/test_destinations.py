"""Saving: what is refused, where files go, and what is left when it fails."""

from __future__ import annotations

import copy
import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from helpers import MIB, as_nobody, assert_same, listing, run_python
from torch import Tensor, nn

# What is refused


class Wrapped(Tensor):
    """A subclass that computes in Python and holds no bytes itself."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        wrapped: Wrapped = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


class Remembering(nn.Linear):
    def get_extra_state(self) -> object:
        return {"seen": 1}

    def set_extra_state(self, state: object) -> None:
        pass


class RememberingTensor(Remembering):
    def get_extra_state(self) -> object:
        return torch.ones(2)


def freed() -> Tensor:
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: None, "NoneType"),
    "number": (lambda: 3, "int"),
    "nested dict": (lambda: {"inner": torch.ones(1)}, "dict"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "NestedTensor",
    ),
    "meta": (lambda: torch.empty(3, device="meta"), "meta device"),
    "wrapped": (lambda: Wrapped(torch.ones(3)), "Wrapped"),
    "lazy": (lambda: nn.LazyLinear(3).weight, "not initialized"),
    "freed": (freed, "freed"),
    "bits8": (lambda: torch.empty(3, dtype=torch.bits8), "Unsupported dtype"),
    "uint4": (lambda: torch.empty(3, dtype=torch.uint4), "Unsupported dtype"),
}


@pytest.fixture
def old(path: Path) -> Iterator[Path]:
    """An existing destination that must be left as it is, in a folder where nothing must be left behind."""
    flashpack.save_file({"old": torch.arange(5.0)}, path)
    before, state = path.read_bytes(), path.stat()
    yield path
    assert path.read_bytes() == before
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    assert listing(path.parent) == {path.name}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_a_value_without_plain_bytes_is_refused_by_name(case: str, old: Path) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason) as caught:
        flashpack.pack_to_file({"sound": torch.ones(9), "layer.culprit": make()}, old)
    assert "'layer.culprit'" in str(caught.value)


@pytest.mark.parametrize("kind", [Remembering, RememberingTensor])
def test_extra_state_is_refused_by_name(kind: type[nn.Module], old: Path) -> None:
    with pytest.raises(ValueError, match="extra state") as caught:
        flashpack.pack_to_file(nn.Sequential(nn.ReLU(), kind(2, 2)), old)
    assert "'1._extra_state'" in str(caught.value)


@pytest.mark.parametrize("name", [1, None, ("a", "b"), "\ud800"])
def test_a_name_that_is_no_text_is_refused(name: Any, old: Path) -> None:
    with pytest.raises(ValueError, match="tensor names must be"):
        flashpack.pack_to_file({"sound": torch.ones(9), name: torch.ones(1)}, old)


@pytest.mark.parametrize("source", [[torch.ones(1)], torch.ones(1), "model.pt", None])
def test_a_source_that_is_no_model_is_refused(source: Any, old: Path) -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        flashpack.pack_to_file(source, old)


# Destinations


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o000, 0o666)])
def test_the_umask_is_honoured(mask: int, mode: int, path: Path) -> None:
    with umask(mask):
        flashpack.save_file({"a": torch.ones(1)}, path)
    assert mode_of(path) == mode


@pytest.mark.parametrize("mode", [0o600, 0o604, 0o664, 0o755])
def test_a_replaced_file_keeps_its_mode(mode: int, path: Path) -> None:
    path.write_bytes(b"old")
    path.chmod(mode)
    flashpack.save_file({"a": torch.ones(1)}, path)
    assert mode_of(path) == mode
    assert flashpack.is_flashpack_file(path)


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("dangling", [False, True], ids=["existing", "dangling"])
def test_a_symbolic_link_is_followed(relative: bool, dangling: bool, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "real.flashpack", tmp_path / "link.flashpack"
    link.symlink_to(Path("store/real.flashpack") if relative else target)
    if not dangling:
        target.write_bytes(b"old")
    flashpack.save_file({"a": torch.ones(3)}, link)
    assert link.is_symlink()
    assert_same(flashpack.load_file(target), {"a": torch.ones(3)})
    assert listing(tmp_path / "store") == {"real.flashpack"}


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError) as caught:
        flashpack.save_file({"a": torch.ones(3)}, tmp_path / "a")
    assert caught.value.errno == errno.ELOOP
    assert listing(tmp_path) == {"a", "b"}


def test_missing_folders_are_made(tmp_path: Path) -> None:
    destination = tmp_path / "one" / "two" / "model.flashpack"
    flashpack.save_file({"a": torch.ones(1)}, destination)
    assert flashpack.is_flashpack_file(destination)


def test_a_plain_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flashpack.save_file({"a": torch.ones(1)}, "model.flashpack")
    assert listing(tmp_path) == {"model.flashpack"}
    assert_same(flashpack.load_file("model.flashpack"), {"a": torch.ones(1)})


def test_a_very_long_name(tmp_path: Path) -> None:
    destination = tmp_path / ("ü" * 120 + ".flashpack")
    flashpack.save_file({"a": torch.ones(1)}, destination)
    assert listing(tmp_path) == {destination.name}


def test_a_folder_is_no_destination(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        flashpack.save_file({"a": torch.ones(1)}, tmp_path)
    assert caught.value.filename == str(tmp_path)
    assert listing(tmp_path) == set()


def test_a_folder_that_cannot_be_written_to(old: Path) -> None:
    mode = mode_of(old.parent)
    old.parent.chmod(0o555)
    with as_nobody(), pytest.raises(PermissionError) as caught:
        flashpack.save_file({"a": torch.ones(1)}, old)
    old.parent.chmod(mode)
    assert caught.value.errno == errno.EACCES


def test_a_folder_where_nothing_can_be_made() -> None:
    with pytest.raises(OSError) as caught:
        flashpack.save_file({"a": torch.ones(1)}, "/proc/model.flashpack")
    assert caught.value.errno
    assert caught.value.filename == "/proc/model.flashpack"


@pytest.mark.parametrize("path_value", ["", "a\0b", "\ud800"])
def test_texts_that_are_no_path(path_value: str) -> None:
    with pytest.raises(ValueError, match="path"):
        flashpack.save_file({"a": torch.ones(1)}, path_value)


# Failure and replacement


def test_saving_a_model_onto_the_file_it_is_mapped_from(path: Path) -> None:
    flashpack.pack_to_file(nn.Linear(64, 64), path)
    model = nn.Linear(64, 64)
    flashpack.assign_from_file(model, path)
    with torch.no_grad():
        model.bias.add_(1)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flashpack.pack_to_file(model, path)
    assert_same(model.state_dict(), expected)
    assert_same(flashpack.load_file(path, eager=True, verify=True), expected)


def test_casting_a_model_onto_the_file_it_is_mapped_from(path: Path) -> None:
    tensors = {"a": torch.randn(1000), "b": torch.randn(10)}
    flashpack.save_file(tensors, path)
    mapped = flashpack.load_file(path)
    flashpack.pack_to_file(mapped, path, torch.float16)
    assert_same(mapped, tensors)
    assert_same(flashpack.load_file(path), {name: tensor.half() for name, tensor in tensors.items()})


LIMITED = """
import resource, signal, sys, torch, flashpack
tensors = {"a": torch.zeros(1 << 20)}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    flashpack.save_file(tensors, sys.argv[1])
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_file_size_limit_leaves_everything_as_it_was(old: Path) -> None:
    assert run_python(LIMITED, old) == f"{errno.EFBIG} {old}"


WITHOUT_MEMORY = """
import resource, sys, torch, flashpack
tensors = {"a": torch.zeros(5)}
flashpack.save_file(tensors, sys.argv[1])
with open("/proc/self/statm") as held:
    limit = int(held.read().split()[0]) * resource.getpagesize() + (1 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    flashpack.save_file(tensors, sys.argv[1])
except MemoryError as error:
    print(error)
"""


def test_a_lack_of_memory_leaves_everything_as_it_was(path: Path) -> None:
    assert f"{path}: cannot reserve 4194304 bytes of memory" in run_python(WITHOUT_MEMORY, path)
    assert_same(flashpack.load_file(path), {"a": torch.zeros(5)})
    assert listing(path.parent) == {path.name}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here; the file size limit is tested all the same")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("megabytes", [2, 64])
def test_a_full_disk_leaves_everything_as_it_was(small_disk: Path, megabytes: int) -> None:
    destination = small_disk / "model.flashpack"
    destination.write_bytes(b"old")
    with pytest.raises(OSError) as caught:
        flashpack.save_file({"a": torch.ones(megabytes * MIB // 4)}, destination)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(destination)
    assert destination.read_bytes() == b"old"
    assert listing(small_disk) == {"model.flashpack"}


def test_a_small_file_fits_on_a_small_disk(small_disk: Path) -> None:
    destination = small_disk / "model.flashpack"
    flashpack.save_file({"a": torch.ones(100)}, destination)
    assert_same(flashpack.load_file(destination), {"a": torch.ones(100)})


def test_a_deep_copy_of_mapped_tensors_packs(path: Path) -> None:
    flashpack.save_file({"a": torch.arange(4.0)}, path)
    copied = copy.deepcopy(flashpack.load_file(path))
    flashpack.save_file(copied, path)
    assert_same(flashpack.load_file(path), {"a": torch.arange(4.0)})
