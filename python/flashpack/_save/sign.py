"""Signing a file. Needs no torch."""

from __future__ import annotations

import hashlib

from .._core.paths import StrPath, text_path
from .._files.sources import watched

_DER_PREFIX = "302a300506032b6570032100"  # what is before the key in the DER of every Ed25519 one


def sign_file(path: StrPath, key: StrPath, *, silent: bool | None = True) -> str:
    """Sign the file with an Ed25519 key, in place of any signature it has; return the key's fingerprint.

    `key` is a file as `openssl genpkey -algorithm ed25519` writes it. The file must have BLAKE3 checksums
    (`pack_to_file(…, checksum="blake3")`), which are compared with its bytes first; it is replaced in one
    step. `silent` as in `verify_file`.

    Raises ChecksumError for a damaged file, FlashPackError for one that is not sound, ValueError for one
    without BLAKE3 checksums and for what is no such key, OSError. The file is then what it was.
    """
    fingerprint: str = watched("sign", "Signing", silent=silent, path=text_path(path), key=text_path(key))
    return fingerprint


def fingerprint_of(public_key: str) -> str:
    """The fingerprint of the key with these 64 hexadecimal digits: the SHA-256 of its DER."""
    return f"sha256:{hashlib.sha256(bytes.fromhex(_DER_PREFIX + public_key)).hexdigest()}"
