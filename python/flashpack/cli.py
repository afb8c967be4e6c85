"""The command line. Only what a command needs is imported, inside it: `metadata` starts without torch."""

from __future__ import annotations

import json
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from ._core.text import is_open, printable

_LAYOUT = "\n\t"
_ESCAPE_CODE = re.compile(r"\x1b\[[\d;]*m")
_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT
_VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Show progress and, on failure, the traceback.")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the program with one line and an exit code of its own."""
    try:
        yield
    except KeyboardInterrupt:
        _tell("Interrupted", fg="red")
        raise SystemExit(_INTERRUPTED) from None


class _Commands(click.Group):
    """Commands that can be interrupted at any time: click itself would end with 1."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _interruptible():
            return super().make_context(*args, **options)

    def invoke(self, context: click.Context) -> Any:
        with _interruptible():
            return super().invoke(context)


@contextmanager
def _reporting_errors(verbose: bool = False) -> Iterator[None]:
    """Any failure becomes one line 'Error: …' and exit code 1; each warning becomes one line, too."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            yield
    except BrokenPipeError:
        raise  # click ends quietly when nobody reads on
    except Exception as error:  # noqa: BLE001 (the last line of defence before the user)
        if verbose:
            traceback.print_exc()
        _tell(f"Error: {error}", fg="red")
        raise SystemExit(1) from None


def _tell(text: str, *, fg: str, err: bool = True) -> None:
    """One line on standard error, or output; nothing where that is closed, or cannot be written to."""
    stream = sys.stderr if err else sys.stdout
    text = _ESCAPE_CODE.sub("", text)
    if is_open(stream):
        with suppress(OSError):
            click.secho(printable(text, stream.encoding, keep=_LAYOUT if err else ""), fg=fg, err=err)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    _tell(f"Warning: {message}", fg="yellow")


def _succeed(message: str) -> None:
    _tell(f"Success: {message}", fg="green", err=False)


def _print(text: str) -> None:
    """`text`, styles and all, with escapes for what standard output has no code for."""
    if sys.stdout is not None:
        encoding = sys.stdout.encoding or "utf-8"
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def _silence(verbose: bool) -> bool | None:
    """Progress shows on a terminal, with -v anywhere."""
    return False if verbose else None


def _whole(path: str) -> str:
    """`path` from the root on, a URL without its secrets."""
    from ._core.paths import is_url, shown_url

    return shown_url(path) if is_url(path) else str(Path(path).absolute())


@click.group(name="flashpack", cls=_Commands)
@click.version_option(package_name="flashpack")
def main() -> None:
    """Pack model weights into FlashPack files, and look into them."""


@main.command()
@click.argument("path_or_repo_id")
@click.argument("destination_path", type=click.Path(), required=False)
@click.option("--subfolder", help="Subfolder of the source folder or repository that holds the weights.")
@click.option("--variant", help="Variant of the weights, such as fp16.")
@click.option("--revision", help="Branch, tag or commit of the repository.")
@click.option("--dtype", help="Cast floating tensors to this dtype, such as bfloat16 or fp16.")
@click.option("--key", help="Take the state dict under this key of a torch checkpoint, such as ema.model.")
@click.option("--max-shard-size", help="Write several files, none larger than this, such as 5GB.")
@click.option("--ignore-names", multiple=True, help="Skip the tensor with this name (repeatable).")
@click.option(
    "--ignore-prefixes", multiple=True, help="Skip tensors whose name starts with this (repeatable)."
)
@click.option("--ignore-suffixes", multiple=True, help="Skip tensors whose name ends with this (repeatable).")
@click.option("--checksum", help="Checksum algorithm: xxh3_64 (default) or blake3.")
@click.option("--use-transformers", is_flag=True, help="Let transformers load the model.")
@click.option("--use-diffusers", is_flag=True, help="Let diffusers load the model.")
@_VERBOSE
def convert(path_or_repo_id: str, destination_path: str | None, verbose: bool, **options: Any) -> None:
    """Convert a weight file, a model folder or a repository to FlashPack.

    A folder or a repository becomes a model folder with the configurations, or a file if the destination
    ends in .flashpack or is left out. A weight file becomes a file.
    """
    with _reporting_errors(verbose):
        from ._convert.convert import convert_to_flashpack

        result = convert_to_flashpack(path_or_repo_id, destination_path, silent=_silence(verbose), **options)
        _succeed(f"Saved to {_whole(result)}")


@main.command()
@click.argument("path", type=click.Path())
@click.argument("destination_path", type=click.Path(), required=False)
@_VERBOSE
def revert(path: str, destination_path: str | None, verbose: bool) -> None:
    """Convert a FlashPack file, or a model folder with one, back.

    To .safetensors, or to torch's format for any other suffix. Into a folder (ending with a slash unless it
    exists), a model folder is made whole again, for its library to load.
    """
    with _reporting_errors(verbose):
        from ._convert.revert import revert_from_flashpack
        from ._core.index import unverified_note
        from ._core.native import read_index

        result = revert_from_flashpack(path, destination_path, silent=_silence(verbose))
        if verbose and (note := unverified_note(path, read_index(path))):
            _print(printable(note))
        _succeed(f"Saved to {_whole(result)}")


@main.command()
@click.argument("path", type=click.Path())
@click.option("-i", "--show-index", is_flag=True, help="Show every tensor.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
def metadata(path: str, show_index: bool, as_json: bool) -> None:
    """Print what the file says about itself."""
    with _reporting_errors():
        from ._core.native import read_index
        from ._inspect.describe import describe

        footer = read_index(path)
        if not show_index:
            del footer["index"]
        _print(json.dumps(footer, indent=2) if as_json else "\n".join(describe(footer)))


@main.command()
@click.argument("path", type=click.Path())
@click.option(
    "--key",
    type=click.Path(),
    required=True,
    help="Private key, as `openssl genpkey -algorithm ed25519` writes it.",
)
@_VERBOSE
def sign(path: str, key: str, verbose: bool) -> None:
    """Sign a file that has BLAKE3 checksums, after comparing every byte with them."""
    with _reporting_errors(verbose):
        from ._save.sign import sign_file

        fingerprint = sign_file(path, key, silent=_silence(verbose))
        _succeed(f"{_whole(path)}: signed by the key {fingerprint}")


@main.command()
@click.argument("path", type=click.Path())
@click.option("--key", type=click.Path(), help="Public key that the file must be signed by.")
@_VERBOSE
def verify(path: str, key: str | None, verbose: bool) -> None:
    """Check the structure and every checksum of a file: exit code 0 when it is sound, 1 when not.

    A file without checksums gets a warning instead of 'Success': only its structure could be checked.
    """
    with _reporting_errors(verbose):
        from ._inspect.verify import verify_file
        from ._load.report import last_load

        result = verify_file(path, key, silent=_silence(verbose))
        if verbose:
            _print(str(last_load()))
        where = _whole(path)
        if result.algorithm is None:
            _warn(
                f"{where}: the structure is sound, but nothing vouches for its {result.payload_bytes} bytes: "
                "the file has no checksums"
            )
            return
        what = f"{result.verified_bytes} bytes match their {result.algorithm} checksums"
        if unverified := result.payload_bytes - result.verified_bytes:
            what += f", {unverified} bytes are in files without any"
        if key:
            what += f"; signed by the key {result.signed_by}"
        _succeed(f"{where}: {what}")


@main.command()
@click.argument("path", type=click.Path())
@click.option("--device", default="cpu", show_default=True, help="Where the tensors would go.")
@click.option("--eager", is_flag=True, default=None, help="Read into memory instead of mapping the file.")
@_VERBOSE
def explain(path: str, device: str, eager: bool | None, verbose: bool) -> None:
    """Print what a load of the file would do, and what limits it, without loading."""
    with _reporting_errors(verbose):
        from ._inspect.explain import explain

        _print(printable(explain(path, device, eager=eager), keep=_LAYOUT))
