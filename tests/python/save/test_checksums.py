"""The digests that a writer may choose from, what they find, and what is said of files without any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import flashpack
import pytest
import torch
from click.testing import CliRunner
from flashpack import FlashPackMixin
from flashpack.__main__ import main
from flashpack.commands import convert_to_flashpack
from helpers import (
    DTYPES,
    MIB,
    assert_same,
    dtype_id,
    flip_byte,
    noise,
    read_footer,
    read_payload,
    without_checksums,
    write_file,
)
from safetensors.torch import save_file
from torch import Tensor, nn

DIGITS = {"xxh3_64": 16, "blake3": 64}
EITHER = pytest.mark.parametrize("checksum", DIGITS)


def tensors() -> dict[str, Tensor]:
    return {"large": noise(torch.uint8, (3 * MIB,)), "small": noise(torch.float32, (5,))}


@EITHER
def test_the_writer_chooses(checksum: str, path: Path) -> None:
    flashpack.save_file(tensors(), path, checksum=checksum)
    told = read_footer(path)["checksums"]
    assert told["algorithm"] == checksum
    assert len(told["digests"]) == 4 * DIGITS[checksum]
    assert len(told["footer"]) == DIGITS[checksum]
    assert flashpack.verify_file(path).algorithm == checksum
    assert_same(flashpack.load_file(path, eager=True, verify=True), tensors())
    assert_same(flashpack.load_file(path, names=["small"], verify=True), {"small": tensors()["small"]})


class Model(nn.Linear, FlashPackMixin):
    """Any model."""


def test_every_writer_takes_the_choice(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    save_file(tensors(), source)
    command = ["convert", str(source), str(path), "--checksum", "blake3"]
    writers = [
        lambda: flashpack.pack_to_file(tensors(), path, checksum="blake3"),
        lambda: Model(2, 2).save_flashpack(path, silent=True, checksum="blake3"),
        lambda: convert_to_flashpack(source, path, checksum="blake3"),
        lambda: convert_to_flashpack(source, path, torch.float8_e5m2, checksum="blake3"),
        lambda: CliRunner().invoke(main, command, catch_exceptions=False),
    ]
    for writer in writers:
        writer()
        assert read_footer(path)["checksums"]["algorithm"] == "blake3"
        path.unlink()


def test_an_unknown_digest_is_refused(path: Path, tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors")
    for write in (
        lambda: flashpack.save_file(tensors(), path, checksum="md5"),
        lambda: convert_to_flashpack(tmp_path / "a.safetensors", path, checksum="md5"),
    ):
        with pytest.raises(ValueError, match='unknown checksum "md5": expected xxh3_64 or blake3'):
            write()
    assert not path.exists()


def many_dtypes() -> dict[str, Tensor]:
    """A block for each dtype, at multiples of 4 KiB: more padding than elements."""
    return {f"as_{dtype_id(dtype)}": noise(dtype, (3, place + 1)) for place, dtype in enumerate(DTYPES)}


def far_apart() -> dict[str, Tensor]:
    """Small tensors, which `align_bytes` keeps far from each other."""
    return {str(place): noise(torch.float32, (5,), place) for place in range(30)}


@pytest.mark.parametrize("make", [many_dtypes, far_apart])
@pytest.mark.parametrize("loads", ["all", "names", "in place"])
def test_padding_hides_no_damage(make: Callable[[], dict[str, Tensor]], loads: str, path: Path) -> None:
    flashpack.pack_to_file(make(), path, align_bytes=64 << 10 if make is far_apart else 128)
    model = nn.Module()
    for name, tensor in make().items():
        model.register_buffer(name, tensor)
    load: Callable[[], object] = {
        "all": lambda: flashpack.load_file(path, eager=True),
        "names": lambda: flashpack.load_file(path, names=list(make()), eager=True),
        "in place": lambda: flashpack.assign_from_file(model, path, in_place=True),
    }[loads]
    load()
    report = flashpack.last_load()
    assert report is not None
    assert report.verified_bytes >= sum(tensor.nbytes for tensor in make().values())
    flip_byte(path, 0)
    with pytest.raises(flashpack.ChecksumError):
        load()


@EITHER
def test_the_first_damaged_chunk_is_named(checksum: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHPACK_READ_THREADS", "8")
    monkeypatch.setenv("FLASHPACK_NO_THREAD_CLAMP", "1")
    parts = {f"part{number}": noise(torch.uint8, (MIB,), number) for number in range(8)}
    flashpack.save_file(parts, path, checksum=checksum)
    for number in (7, 6, 5, 3, 2):
        flip_byte(path, number * MIB + 12)
    expected = r'chunk 2 is damaged, bytes 2097152\.\.3145728 \(of \["part2"\]\): expected digest'
    for _ in range(10):
        with pytest.raises(flashpack.ChecksumError, match=expected):
            flashpack.verify_file(path)
    result = CliRunner().invoke(main, ["verify", str(path)])
    assert result.exit_code == 1
    for text in ("chunk 2", "2097152..3145728", "part2"):
        assert text in result.output


@EITHER
@pytest.mark.parametrize("key", ["digests", "footer"])
def test_a_changed_digest_is_noticed(key: str, checksum: str, path: Path) -> None:
    flashpack.save_file(tensors(), path, checksum=checksum)
    footer = read_footer(path)
    digits = footer["checksums"][key]
    for wrong, error in (
        (("1" if digits[0] == "0" else "0") + digits[1:], flashpack.ChecksumError),
        (digits[1:], flashpack.FlashPackError),
        ("+" + digits[1:], flashpack.FlashPackError),
        ("", flashpack.FlashPackError),
    ):
        footer["checksums"][key] = wrong
        write_file(path, read_payload(path), footer)
        with pytest.raises(error):
            flashpack.load_file(path)


def test_a_digest_of_the_future_is_none(path: Path) -> None:
    flashpack.save_file(tensors(), path)
    footer = read_footer(path)
    footer["checksums"]["algorithm"] = "sha4"
    write_file(path, read_payload(path), footer)
    assert_same(flashpack.load_file(path, eager=True), tensors())
    assert flashpack.verify_file(path).algorithm is None


def test_a_file_without_checksums_loads_and_says_so(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Linear(3, 3)
    flashpack.pack_to_file(model, path)
    flashpack.assign_from_file(model, path, silent=False, eager=True)
    assert "no checksums" not in capsys.readouterr().out
    without_checksums(path)
    flashpack.assign_from_file(model, path, silent=False, eager=True)
    assert f"{path}: the file has no checksums, nothing was verified" in capsys.readouterr().out
    for option, says in ((["-v"], True), ([], False)):
        result = CliRunner().invoke(main, ["revert", str(path), str(tmp_path / "a.safetensors"), *option])
        assert result.exit_code == 0
        assert ("no checksums" in result.output) is says


@pytest.mark.parametrize("other", ["blake3", "safetensors"])
def test_each_file_of_a_list_is_verified_by_its_own_checksums(other: str, path: Path, tmp_path: Path) -> None:
    beside, more = tmp_path / "beside", {"more": noise(torch.uint8, (3 * MIB,))}
    flashpack.save_file(tensors(), path)
    if other == "blake3":
        flashpack.save_file(more, beside, checksum="blake3")
    else:
        save_file(more, beside)
    for files in ([path, beside], [beside, path]):
        assert_same(flashpack.load_file(files, eager=True), tensors() | more)
        report = flashpack.last_load()
        assert report is not None
        found = flashpack.verify_file(files)
        assert found.algorithm == ("blake3 and xxh3_64" if other == "blake3" else "xxh3_64")
        verified = found.payload_bytes - (0 if other == "blake3" else beside.stat().st_size)
        assert found.verified_bytes == report.verified_bytes == verified
    flip_byte(path, 1000)
    for files in ([path, beside], [beside, path]):
        with pytest.raises(flashpack.ChecksumError, match="chunk 0 is damaged"):
            flashpack.load_file(files, eager=True)
        with pytest.raises(flashpack.ChecksumError, match="chunk 0 is damaged"):
            flashpack.verify_file(files)
