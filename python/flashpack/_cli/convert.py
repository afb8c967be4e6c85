"""`convert` and `revert`."""

from __future__ import annotations

from typing import Any

import click

from .._core.text import printable
from .output import quiet_option, reporting_errors, show, silence, succeed, verbose_option, whole


@click.command()
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
@click.option("--compress", help="Store fewer bytes: fast (to decode) or small. None are lost.")
@click.option("--use-transformers", is_flag=True, help="Let transformers load the model.")
@click.option("--use-diffusers", is_flag=True, help="Let diffusers load the model.")
@quiet_option
@verbose_option
def convert(path_or_repo_id: str, destination_path: str | None, verbose: bool, **options: Any) -> None:
    """Convert weights to FlashPack.

    The source is a weight file, a model folder, a repository or the URL of safetensors. A folder or a
    repository becomes a model folder with the configurations, or a file if the destination ends in
    .flashpack or is left out. A weight file becomes a file. A FlashPack file, or the index of its shards,
    is written anew: cast, in shards or as one file, with other checksums, compressed or not.
    """
    with reporting_errors(verbose):
        from .._convert.convert import convert_to_flashpack

        result = convert_to_flashpack(path_or_repo_id, destination_path, silent=silence(verbose), **options)
        succeed(f"Saved to {whole(result)}")


@click.command()
@click.argument("path", type=click.Path())
@click.argument("destination_path", type=click.Path(), required=False)
@quiet_option
@verbose_option
def revert(path: str, destination_path: str | None, verbose: bool) -> None:
    """Convert a FlashPack file or model folder back.

    To .safetensors, or to torch's format for any other suffix. Into a folder (ending with a slash unless it
    exists), a model folder is made whole again, for its library to load.
    """
    with reporting_errors(verbose):
        from .._convert.revert import revert_from_flashpack
        from .._core.index import unverified_note
        from .._core.native import read_index
        from .._files.sources import shown_path

        result = revert_from_flashpack(path, destination_path, silent=silence(verbose))
        if verbose and (note := unverified_note(shown_path(path), read_index(path))):
            show(printable(note))
        succeed(f"Saved to {whole(result)}")
