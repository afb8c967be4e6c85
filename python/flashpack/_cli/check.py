"""`verify` and `sign`."""

from __future__ import annotations

import click

from .._core.text import printable, size_text
from .output import fail, quiet_option, reporting_errors, show, silence, succeed, verbose_option, warn, whole


@click.command()
@click.argument("path", type=click.Path())
@click.option(
    "--key",
    type=click.Path(),
    required=True,
    help="Private key, as `openssl genpkey -algorithm ed25519` writes it.",
)
@quiet_option
@verbose_option
def sign(path: str, key: str, verbose: bool) -> None:
    """Sign a file that has BLAKE3 checksums.

    Every byte is compared with them before.
    """
    with reporting_errors(verbose):
        from .._save.sign import sign_file

        fingerprint = sign_file(path, key, silent=silence(verbose))
        succeed(f"{whole(path)}: signed by the key {fingerprint}")


@click.command()
@click.argument("paths", type=click.Path(), nargs=-1, required=True, metavar="PATH...")
@click.option("--key", type=click.Path(), help="Public key that each file must be signed by.")
@quiet_option
@verbose_option
def verify(paths: tuple[str, ...], key: str | None, verbose: bool) -> None:
    """Check the structure and every checksum of files.

    Exit code 0 when all are sound, 1 when not. A file without checksums gets a warning instead of
    'Success': only its structure could be checked.
    """
    unsound = sum(not _is_sound(path, key, verbose) for path in paths)
    if unsound and len(paths) > 1:
        fail(f"{unsound} of {len(paths)} are not sound, or could not be read; see above")
    if unsound:
        raise SystemExit(1)


def _is_sound(path: str, key: str | None, verbose: bool) -> bool:
    """Whether it is, which is said."""
    try:
        with reporting_errors(verbose):
            _verify(path, key, verbose)
    except SystemExit:
        return False
    return True


def _verify(path: str, key: str | None, verbose: bool) -> None:
    from .._inspect.verify import verify_file
    from .._load.report import last_load

    result = verify_file(path, key, silent=silence(verbose))
    if verbose:
        show(printable(last_load(), keep="\n"))
    where = whole(path)
    if result.algorithm is None:
        warn(
            f"{where}: the structure is sound, but nothing vouches for its "
            f"{_bytes(result.payload_bytes)}: the file has no checksums"
        )
        return
    what = f"{_bytes(result.verified_bytes)} match their {result.algorithm} checksums"
    if unverified := result.payload_bytes - result.verified_bytes:
        what += f", {_bytes(unverified)} are in files without any"
    if key:
        what += f"; signed by the key {result.signed_by}"
    succeed(f"{where}: {what}")


def _bytes(count: int) -> str:
    return f"{count} bytes" if count < 1000 else f"{count} bytes ({size_text(count)})"
