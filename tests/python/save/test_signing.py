"""Signing and verifying as users do it. What a signature notices is in tests/signing.rs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import flashpack
import pytest
import torch
from click.testing import CliRunner, Result
from flashpack import SignatureError, sign_file, verify_file
from flashpack.__main__ import main
from helpers import FIXTURES, assert_same, flip_byte, noise, read_footer, read_payload, write_file
from processes import environment
from torch import Tensor

KEYS = FIXTURES / "keys"
PRIVATE, PUBLIC = KEYS / "private.pem", KEYS / "public.pem"
OTHER_PRIVATE, OTHER_PUBLIC = KEYS / "other_private.pem", KEYS / "other_public.pem"
# openssl pkey -pubin -in public.pem -outform DER | sha256sum
FINGERPRINT = "sha256:06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9"


def tensors() -> dict[str, Tensor]:
    return {"large": noise(torch.float32, (300_001,)), "small": noise(torch.bfloat16, (5, 3))}


@pytest.fixture
def packed(path: Path) -> Path:
    flashpack.save_file(tensors(), path, metadata={"licence": "mit"}, checksum="blake3")
    return path


@pytest.fixture
def signed(packed: Path) -> Path:
    assert sign_file(packed, PRIVATE) == FINGERPRINT
    return packed


def run(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def error_of(*args: object) -> str:
    """The one sentence that a command ends in, with exit code 1."""
    result = run(*args)
    assert result.exit_code == 1
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_sign_and_verify(packed: Path) -> None:
    assert f"{packed}: is not signed" in error_of("verify", packed, "--key", PUBLIC)
    done = run("sign", packed, "--key", PRIVATE)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"Success: {packed}: signed by the key {FINGERPRINT}\n"
    done = run("verify", packed, "--key", PUBLIC)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "match their blake3 checksums" in done.stdout
    assert done.stdout.endswith(f"; signed by the key {FINGERPRINT}\n")
    assert "signed by" not in run("verify", packed).stdout  # which proves nothing without a key
    assert_same(flashpack.load_file(packed, eager=True, verify=True), tensors())
    assert list(packed.parent.iterdir()) == [packed]


def test_another_key(signed: Path) -> None:
    told = error_of("verify", signed, "--key", OTHER_PUBLIC)
    assert f"{signed}: is signed by the key {FINGERPRINT}, not by sha256:" in told
    sign_file(signed, OTHER_PRIVATE)  # replaces the first
    assert verify_file(signed, OTHER_PUBLIC).signed_by == verify_file(signed).signed_by != FINGERPRINT
    with pytest.raises(SignatureError, match=f"not by {FINGERPRINT}"):
        verify_file(signed, PUBLIC)


def test_altered_metadata(signed: Path) -> None:
    """Whoever alters a file can make digests that fit; here by packing it again, and moving the signature."""
    signature = read_footer(signed)["signature"]
    flashpack.save_file(tensors(), signed, metadata={"licence": "none"}, checksum="blake3")
    write_file(signed, read_payload(signed), {**read_footer(signed), "signature": signature})
    told = error_of("verify", signed, "--key", PUBLIC)
    assert "has a signature that does not hold" in told
    with pytest.raises(SignatureError):
        verify_file(signed)


def test_altered_payload(signed: Path) -> None:
    flip_byte(signed, 7)
    assert "chunk 0 is damaged" in error_of("verify", signed, "--key", PUBLIC)
    before = signed.read_bytes()
    assert "chunk 0 is damaged" in error_of("sign", signed, "--key", PRIVATE)
    assert signed.read_bytes() == before


def test_signing_keeps_all_but_the_signature(packed: Path) -> None:
    packed.chmod(0o640)
    footer, payload = read_footer(packed), read_payload(packed)
    written_elsewhere = {"future": {"key": [1.5, None, "é"]}, **footer}
    write_file(packed, payload, written_elsewhere)
    sign_file(packed, PRIVATE)
    sign_file(packed, PRIVATE)
    after = read_footer(packed)
    assert after.pop("signature")["algorithm"] == "ed25519"
    assert after == written_elsewhere
    assert read_payload(packed) == payload
    assert packed.stat().st_mode & 0o777 == 0o640


def test_metadata_tells_whose_signature_there_is(signed: Path) -> None:
    told = run("metadata", signed).stdout
    assert f"signature: ed25519, said to be by the key {FINGERPRINT}" in told
    digests = read_footer(signed)["checksums"]["digests"]
    assert f"checksums: blake3, {len(digests) // 64} digests of 1048576 bytes each" in told
    assert read_footer(signed)["signature"]["public_key"] in run("metadata", signed, "--json").stdout
    write_file(signed, read_payload(signed), {**read_footer(signed), "signature": None, "checksums": None})
    assert "signature: None" in run("metadata", signed).stdout


@pytest.mark.parametrize("checksum", ["xxh3_64", None])
def test_only_files_with_blake3_checksums_are_signed(path: Path, checksum: str | None) -> None:
    flashpack.save_file(tensors(), path, checksum=checksum or "blake3")
    if checksum is None:
        write_file(path, read_payload(path), {**read_footer(path), "checksums": None})
    before = path.read_bytes()
    told = error_of("sign", path, "--key", PRIVATE)
    assert "flashpack convert --checksum blake3" in told
    assert 'pack_to_file(…, checksum="blake3")' in told
    with pytest.raises(ValueError, match="only files with BLAKE3 checksums"):
        sign_file(path, PRIVATE)
    assert path.read_bytes() == before


def test_keys_that_are_none(signed: Path, tmp_path: Path) -> None:
    assert "holds no Ed25519 private key" in error_of("sign", signed, "--key", PUBLIC)
    assert "holds no Ed25519 public key" in error_of("verify", signed, "--key", PRIVATE)
    assert "holds no Ed25519 public key" in error_of("verify", signed, "--key", signed)
    with pytest.raises(FileNotFoundError) as caught:
        verify_file(signed, tmp_path / "missing.pem")
    assert caught.value.filename == str(tmp_path / "missing.pem")
    with pytest.raises(IsADirectoryError):
        sign_file(signed, tmp_path)


def test_a_key_may_come_through_a_pipe(packed: Path) -> None:
    read, write = os.pipe()
    threading.Thread(target=lambda: (os.write(write, PRIVATE.read_bytes()), os.close(write))).start()
    assert sign_file(packed, f"/dev/fd/{read}") == FINGERPRINT
    os.close(read)


def test_several_files(tmp_path: Path) -> None:
    """Each shard is signed by itself, and all of them have to be."""
    flashpack.save_file(tensors(), tmp_path / "model.flashpack", checksum="blake3", max_shard_size="1MB")
    shards = sorted(tmp_path.glob("*.flashpack"))
    assert len(shards) == 2
    sign_file(shards[0], PRIVATE)
    with pytest.raises(SignatureError, match=f"{shards[1]}: is not signed"):
        verify_file(tmp_path, PUBLIC)
    sign_file(shards[1], PRIVATE)
    assert verify_file(tmp_path, PUBLIC).signed_by == FINGERPRINT
    assert_same(flashpack.load_file(tmp_path), tensors())


def test_shards_of_two_saves(tmp_path: Path) -> None:
    """The index that lists them is signed by nobody: an older shard may not come back through it."""
    path = tmp_path / "model.flashpack"
    for save in range(2):
        flashpack.save_file(tensors(), path, checksum="blake3", max_shard_size="1MB")
        first, second = sorted(tmp_path.glob("*.flashpack"))
        sign_file(first, PRIVATE)
        sign_file(second, PRIVATE)
        if save == 0:
            old = second.read_bytes()
    assert verify_file(tmp_path, PUBLIC).signed_by == FINGERPRINT
    second.write_bytes(old)
    index = tmp_path / "model.flashpack.index.json"
    listed = json.loads(index.read_text())
    del listed["metadata"]
    index.write_text(json.dumps(listed))
    for refused in (flashpack.load_file, lambda path: verify_file(path, PUBLIC)):
        with pytest.raises(flashpack.FlashPackError, match="belongs to another save than another shard"):
            refused(tmp_path)
    told = f"{second}: is signed, but as part of another save than {first}"
    with pytest.raises(SignatureError, match=told):
        verify_file([first, second], PUBLIC)


def test_safetensors_are_never_signed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    assert f"{path}: is not signed" in error_of("verify", path, "--key", PUBLIC)
    assert "Bad magic" in error_of("sign", path, "--key", PRIVATE)


def test_signing_needs_no_torch(packed: Path) -> None:
    code = (
        "import sys, flashpack as f; f.sign_file(*sys.argv[1:3]); f.verify_file(*sys.argv[1:4:2]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, packed, PRIVATE, PUBLIC], env=environment(), check=True)
