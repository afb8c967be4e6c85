"""Whether a file is sound: its footer, and every checksum. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._core import native
from .._core.errors import FlashPackError
from .._core.paths import StrPath, text_path
from .._files.sources import ModelPath, model_path, watched
from .._load.report import remember


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of `verify_file`: sizes in bytes; `algorithm` is None for a file without checksums, "blake3 and
    xxh3_64" for a model whose files differ in it. `verified_bytes` counts the files that have checksums.

    `signed_by` is the fingerprint of the key that signed it, None if none did. It proves something only if
    `verify_file` was given that key: anybody can sign with a key of their own.
    """

    payload_bytes: int
    verified_bytes: int
    algorithm: str | None
    signed_by: str | None = None


def get_flashpack_file_metadata(path: StrPath) -> dict[str, Any]:
    """The footer of the file as a dict, after every structural check of the format.

    Raises FlashPackError (a ValueError) for a file that is not sound, OSError for one that cannot be read.
    """
    footer: dict[str, Any] = native.call("footer", path=text_path(path))
    return footer


def is_flashpack_file(path: StrPath) -> bool:
    """Whether there is a file and it is sound FlashPack. Raises OSError for one that cannot be read."""
    try:
        get_flashpack_file_metadata(path)
    except (FlashPackError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    return True


def verify_file(path: ModelPath, key: StrPath | None = None, *, silent: bool | None = True) -> Verification:
    """Check structure and every checksum of the file, or of all of a model's.

    With `key`, a public key as `openssl pkey -pubout` writes it, each file must be signed by its holder; see
    `sign_file`. `last_load` then tells where its time went. Raises ChecksumError naming the damaged range,
    SignatureError, FlashPackError for a broken structure, ValueError for what is no such key, OSError.
    """
    keys: dict[str, Any] = {} if key is None else {"key": text_path(key)}
    result = watched("verify", "Verifying", silent=silent, path=model_path(path), **keys)
    remember(result.pop("load"))
    return Verification(**result)
