"""What a load says of itself: `explain` before it, `last_load` after it, and both on the command line."""

from __future__ import annotations

import shutil
import threading
from dataclasses import FrozenInstanceError
from pathlib import Path

import flashpack
import pytest
import torch
from click.testing import CliRunner
from flashpack import Explanation, LoadReport
from flashpack.__main__ import main
from helpers import MIB, flip_byte, noise, without_checksums
from page_cache import forget, resident
from processes import python, succeed
from torch._subclasses.fake_tensor import FakeTensorMode

SIZES = {"large": 5 * MIB, "small": 1000}
BYTES = sum(SIZES.values())


@pytest.fixture
def packed(path: Path) -> Path:
    flashpack.save_file({name: noise(torch.uint8, (size,)) for name, size in SIZES.items()}, path)
    return path


def loaded(path: Path, **options: bool) -> LoadReport:
    flashpack.load_file(path, **options)
    report = flashpack.last_load()
    assert report is not None
    return report


# --- Before. ---------------------------------------------------------------------------------------


def test_an_eager_load_is_explained_as_it_then_happens(packed: Path) -> None:
    told = flashpack.explain(packed, eager=True)
    assert (told.path, told.device, told.mode, told.tensors) == (str(packed), "cpu", "read", 2)
    assert (told.file_bytes, told.tensor_bytes) == (packed.stat().st_size, BYTES)
    assert told.algorithm == "xxh3_64"
    assert told.chunks == told.verified_chunks == 6
    assert told.chunk_bytes == MIB
    assert told.read_ahead is None
    assert told.staging_bytes == 0
    assert 0 < told.sample_bytes <= told.payload_bytes
    assert told.seconds > 0
    assert told.limit in ("disk", "page cache", "checksums")
    report = loaded(packed, eager=True)
    assert (report.bytes, report.threads) == (told.read_bytes, told.threads)
    assert report.verified_bytes == told.verified_bytes


def test_a_mapped_load_reads_nothing(packed: Path) -> None:
    packed.read_bytes()  # into the page cache
    told = flashpack.explain(packed)
    assert (told.mode, told.chunks, told.read_bytes, told.memory_bytes) == ("map", 0, 0, 0)
    assert told.mapped_bytes >= BYTES
    assert told.limit is None
    assert told.read_ahead is not None and not told.read_ahead[0]
    assert "nothing is read before a tensor is touched" in str(told)
    asked_not_to = flashpack.explain(packed, eager=False)
    assert asked_not_to.read_ahead is not None and "eager=False" in asked_not_to.read_ahead[1]


def test_a_load_to_a_device_is_staged_and_needs_no_device(packed: Path) -> None:
    told = flashpack.explain(packed, "cuda:3")
    assert (told.device, told.mode) == ("cuda:3", "stage")
    assert 1 <= told.staging_buffers <= 2 * told.threads
    assert 0 < told.staging_bytes <= 256 * MIB
    assert told.staging_bytes / told.staging_buffers >= told.task_bytes
    assert "link to the device is not measured" in str(told)
    assert flashpack.explain(packed, 3).device == "cuda:3"
    assert flashpack.explain(packed, torch.device("cuda")).mode == "stage"
    assert flashpack.explain(packed, "mps").mode == "map"


def test_files_without_checksums_are_said_to_have_none(packed: Path) -> None:
    without_checksums(packed)
    told = flashpack.explain(packed, eager=True)
    assert (told.algorithm, told.verified_chunks) == (None, 0)
    assert told.chunks > 0
    assert "nothing can be verified" in str(told)
    with pytest.raises(ValueError, match="no checksums"):
        flashpack.explain(packed, eager=True, verify=True)


def test_checksums_that_nobody_asks_for_are_not_looked_at(packed: Path) -> None:
    told = flashpack.explain(packed, eager=True, verify=False)
    assert (told.verified_chunks, told.verified_bytes, told.checksum_rate) == (0, 0, None)
    assert "not looked at" in str(told)


def test_names_choose_and_unknown_ones_are_refused(packed: Path) -> None:
    told = flashpack.explain(packed, names=["small", "small"], eager=True)
    assert (told.tensors, told.tensor_bytes) == (1, 1000)
    with pytest.raises(ValueError, match="no tensor named"):
        flashpack.explain(packed, names=["other"])
    with pytest.raises(FileNotFoundError):
        flashpack.explain(packed.with_name("gone"))
    for device in ("", "cuda:x", "0", "cuda:"):
        with pytest.raises(ValueError, match="is no device"):
            flashpack.explain(packed, device)


@pytest.mark.parametrize(("value", "way"), [("0", "through"), ("1", "past")])
def test_the_way_to_the_file_follows_the_environment(
    packed: Path, monkeypatch: pytest.MonkeyPatch, value: str, way: str
) -> None:
    monkeypatch.setenv("FLASHPACK_DIRECT_IO", value)
    told = flashpack.explain(packed, eager=True)
    if value == "1" and not told.direct:
        assert "refuses" in told.why  # a file system in memory
        return
    assert told.direct == (way == "past")
    assert f"{way} the page cache: FLASHPACK_DIRECT_IO says so" in str(told)


def test_looking_at_the_page_cache_does_not_fill_it(path: Path) -> None:
    """A look makes the kernel read ahead at the places looked at: the next look must be at others."""
    flashpack.save_file({"a": torch.ones(64 * MIB, dtype=torch.uint8)}, path)
    forget(path)
    for _ in range(2):
        told = flashpack.explain(path, eager=True)
        assert told.cached_part is not None and told.cached_part < 0.5
        # A host that caches the disk may give a sample as fast as memory would.
        assert told.direct or "refuses" in told.why or "speed of memory" in told.why
        assert told.direct == (told.limit != "page cache")


MOUNT_OVERLAY = (
    'cd "$0" && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work seen && exec "$@"'
)
EXPLAIN = """
import flashpack, sys
told = flashpack.explain(sys.argv[1], eager=True)
print(told.cached_part, told.direct, told.why)
"""


def test_files_of_a_container_image_are_read_past_the_page_cache(tmp_path: Path) -> None:
    """An overlay refuses reads that must not wait: taken for cached, its files load at half the speed."""
    for folder in ("lower", "upper", "work", "seen"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "lower/model.flashpack"
    flashpack.save_file({"a": torch.ones(64 * MIB, dtype=torch.uint8)}, path)
    behind = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", MOUNT_OVERLAY, tmp_path]
    if not shutil.which("unshare") or python("-c", "", behind=behind).returncode:
        pytest.skip("the system lets nobody but root mount an overlay")
    forget(path)
    told = succeed(python("-c", EXPLAIN, tmp_path / "seen/model.flashpack", behind=behind))
    cached_part, direct, why = told.split(" ", 2)
    assert float(cached_part) < 0.5
    # A host that caches the disk may give a sample as fast as memory would.
    assert direct == "True" or "refuses" in why or "came at the speed of memory" in why, why


def test_looking_at_a_file_to_be_mapped_leaves_it_alone(path: Path) -> None:
    """Pages that a look has read lie in the way of the huge ones that a load would read."""
    flashpack.save_file({"a": torch.ones(64 * MIB, dtype=torch.uint8)}, path)
    forget(path)
    flashpack.explain(path)
    assert resident(path) < 0.01


def test_an_explanation_cannot_be_changed(packed: Path) -> None:
    told = flashpack.explain(packed)
    assert isinstance(told, Explanation)
    with pytest.raises(FrozenInstanceError):
        told.threads = 5  # type: ignore[misc]


# --- After. ----------------------------------------------------------------------------------------


def test_a_report_tells_the_stages(packed: Path) -> None:
    report = loaded(packed, eager=True)
    assert report.wall > report.open > 0
    assert report.read > 0 and report.hash > 0
    assert report.staging == report.device == report.queue == 0
    assert report.read + report.hash <= report.wall * report.threads
    assert report.limit in ("disk", "page cache", "checksums", "index")
    assert f"the limit was: {report.limit}" in str(report)
    unverified = loaded(packed, eager=True, verify=False)
    assert unverified.hash == unverified.verified_bytes == 0
    assert "checksums" not in str(unverified)


def test_a_mapped_load_has_nothing_to_report(packed: Path) -> None:
    report = loaded(packed)
    assert (report.bytes, report.limit) == (0, None)
    assert "nothing to read" in str(report)


def test_a_large_load_reports_to_its_caller_and_not_to_the_thread_that_ran_it(path: Path) -> None:
    flashpack.save_file({"large": torch.zeros(65 * MIB, dtype=torch.uint8)}, path)
    report = loaded(path, eager=True)
    assert report.verified_bytes == 65 * MIB


def test_every_thread_has_its_own(packed: Path) -> None:
    mine = loaded(packed, eager=True)
    seen: list[LoadReport | None] = []

    def other() -> None:
        seen.append(flashpack.last_load())
        seen.append(loaded(packed))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen[0] is None
    assert seen[1] is not None and seen[1].bytes == 0
    assert flashpack.last_load() is mine


def test_verification_is_reported_and_failures_are_not(packed: Path) -> None:
    flashpack.verify_file(packed)
    report = flashpack.last_load()
    assert report is not None and report.verified_bytes == report.bytes > 0
    flip_byte(packed, 100)
    with pytest.raises(flashpack.ChecksumError):
        flashpack.load_file(packed, eager=True)
    assert flashpack.last_load() is report


def test_models_report_too(path: Path) -> None:
    model = torch.nn.Linear(300, 300)
    flashpack.pack_to_file(model, path)
    flashpack.assign_from_file(model, path, eager=True)
    report = flashpack.last_load()
    assert report is not None and report.bytes >= 4 * 300 * 301


def test_the_operator_tells_the_same_and_can_be_traced(packed: Path) -> None:
    report = loaded(packed, eager=True)
    assert f'"bytes":{report.bytes},' in torch.ops.flashpack.last_load()
    with FakeTensorMode():
        assert torch.ops.flashpack.last_load() == "null"


# --- The command line. -----------------------------------------------------------------------------


def run(*args: object) -> str:
    done = CliRunner().invoke(main, list(map(str, args)))
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_prints_the_explanation(packed: Path) -> None:
    assert "map the file" in run("explain", packed)
    eager = run("explain", packed, "--eager", "-v")
    assert "read into memory" in eager and "6 of 6 chunks verified" in eager
    assert "stage to the device" in run("explain", packed, "--device", "cuda")
    refused = CliRunner().invoke(main, ["explain", str(packed.with_name("gone"))])
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: ")


def test_verify_tells_its_time_when_asked(packed: Path) -> None:
    assert "the limit was: " in run("verify", packed, "-v")
    assert "the limit was" not in run("verify", packed)


def test_explaining_needs_no_torch(packed: Path) -> None:
    code = (
        "import sys, flashpack; print(flashpack.explain(sys.argv[1]).mode, flashpack.last_load());"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert succeed(python("-c", code, packed)).splitlines() == ["map None", "[]"]
