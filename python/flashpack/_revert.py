"""Conversion back from FlashPack, to safetensors or to torch's own format."""

from __future__ import annotations

from pathlib import Path

from . import _native
from ._footer import verify_file
from ._paths import StrPath, destination_or, make_parent, refuse_source, replacing, text_path, with_suffix
from ._progress import run

_OWN_SUFFIX = frozenset({".flashpack"})


def revert_from_flashpack(
    path: StrPath, destination_path: StrPath | None = None, silent: bool | None = True
) -> str:
    """Write the file's tensors as .safetensors, or with torch.save for any other suffix; return the path.

    The destination defaults to the source with .flashpack swapped for .safetensors (another suffix is
    kept and .safetensors appended). safetensors stream; torch.save needs memory for the whole model.

    Raises ValueError for a destination that is the source, FlashPackError for an unsound file, OSError.
    """
    source = Path(text_path(path))
    destination = destination_or(with_suffix(source, _OWN_SUFFIX, ".safetensors"), destination_path)
    refuse_source(destination, [source])
    size = source.stat().st_size
    make_parent(destination)
    if destination.suffix.lower() == ".safetensors":
        run(
            lambda counter: _native.call("revert", counter, path=str(source), destination=str(destination)),
            label="Reverting",
            size=size,
            silent=silent,
        )
    else:
        _save_with_torch(source, destination)
    return str(destination)


def _save_with_torch(source: Path, destination: Path) -> None:
    import torch

    from ._load import duplicate, load_file

    verify_file(source)  # the new file has no checksums to find damage by
    tensors = load_file(source)
    # torch.save stores whole storages, and refuses one that holds several dtypes: each tensor needs its own.
    own = dict(zip(tensors, duplicate(tensors.values(), torch.Tensor.clone), strict=True))
    with replacing(destination) as temporary:
        try:
            with temporary.open("wb") as file:  # ours, so that a full disk is an OSError
                torch.save(own, file)
        except (OSError, RuntimeError) as error:
            # After a failed write torch's own writer fails once more and hides the reason.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise OSError(reason.errno, f"cannot write: {reason.strerror}", str(destination)) from error
