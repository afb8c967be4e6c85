"""Conversion back from FlashPack, to safetensors or to torch's own format."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from .._core import native
from .._core.errors import may_need_torch
from .._core.paths import StrPath, is_url, refuse_source, text_path, with_suffix
from .._files.folder import (
    ADAPTER_CONFIG,
    CONFIG,
    INDEX_SUFFIX,
    SAFETENSORS,
    SUFFIX,
    copy_companions,
    find_companions,
    is_weights_name,
    library_weights_name,
    names_folder,
    placed,
    stem_of,
)
from .._files.new_file import replacing
from .._files.sources import find_weights, shown_path, watched
from .._inspect.verify import verify_file

# Names of other formats than torch's, which is written under any other.
_FOREIGN_SUFFIXES = frozenset(
    {".flashpack", ".gguf", ".h5", ".json", ".msgpack", ".npy", ".npz", ".onnx", ".pb", ".tflite", ".zip"}
)
_OWN_SUFFIX = frozenset({".flashpack"})


@may_need_torch("this conversion")
def revert_from_flashpack(
    path: StrPath, destination_path: StrPath | None = None, silent: bool | None = True
) -> str:
    """Write the file's tensors as .safetensors, or with torch.save for any other suffix; return the path.

    `path` may be a model folder, or stand for shards; it and the destination may be URLs, of weights alone.
    The destination is a file, or a folder (there is one, or the path ends with a slash): of a model folder it
    becomes one that the model's library loads, the weights named as the library names them, beside the
    configurations and other small files. It defaults to the source with .flashpack swapped for .safetensors
    (another suffix is kept and .safetensors appended), or to the model folder. safetensors stream; torch.save
    needs memory for the whole model.

    Raises ValueError for a destination that is the source or whose suffix is another format's, and for a
    folder whose weights are ambiguous, FlashPackError for an unsound file or another format's, OSError.
    """
    text = text_path(path)
    if is_url(text) or is_url(destination_path):
        return _revert_by_url(text, destination_path, silent)
    given = Path(text)
    source = _weights_in(given) if given.is_dir() else given
    folder = source.parent if given.is_dir() or _is_model_folder(source) else None
    named = source.with_name(source.name.removesuffix(INDEX_SUFFIX))
    destination = _destination(named, folder, given.is_dir(), destination_path)
    refuse_source(destination, [source])
    copies = folder is not None and destination_path is not None and names_folder(destination_path)
    companions = find_companions(folder, stem_of(source)) if folder and copies else []
    _write(str(source), str(destination), silent)
    if folder and companions:
        copy_companions(folder, companions, destination.parent)
    return str(destination)


def _revert_by_url(source: str, wished: StrPath | None, silent: bool | None) -> str:
    """`revert_from_flashpack` from a URL, to a URL, or both: of weights alone."""
    name = with_suffix(Path(PurePosixPath(shown_path(source)).name), _OWN_SUFFIX, SAFETENSORS).name
    destination = name if wished is None else placed(wished, name)
    _write(source, destination, silent)
    return destination


def _write(source: str, destination: str, silent: bool | None) -> None:
    shown = shown_path(destination)
    suffix = PurePosixPath(shown).suffix
    if suffix.lower() in _FOREIGN_SUFFIXES:
        raise ValueError(f"{shown}: cannot write {suffix}, only .safetensors and torch's own format")
    if suffix.lower() == SAFETENSORS:
        watched("revert", "Reverting", silent=silent, path=source, destination=destination)
    elif is_url(destination):
        raise ValueError(f"{shown}: only .safetensors are written to a URL")
    else:
        native.call("expect", path=source)  # of safetensors there is nothing to revert
        _save_with_torch(source, Path(destination))


def _weights_in(folder: Path) -> Path:
    """The only FlashPack file of the folder, or the index of its shards."""
    found = find_weights(folder, None, [SUFFIX])
    names = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    if found.suffix == SUFFIX and len(names) > 1:
        raise ValueError(f"{folder}: which of these is meant? {', '.join(names)}")
    return found


def _is_model_folder(source: Path) -> bool:
    """Whether the file is the weights of the model folder that it lies in."""
    configs = [source.parent / CONFIG, source.parent / ADAPTER_CONFIG]
    return is_weights_name(source.name) and any(config.is_file() for config in configs)


def _destination(source: Path, folder: Path | None, whole: bool, wished: StrPath | None) -> Path:
    into = None if wished is None else Path(text_path(wished))
    if wished is not None and into is not None and not names_folder(wished):
        return into
    if folder is not None and (whole or into is not None):
        return (into or folder) / library_weights_name(source)
    default = with_suffix(source, _OWN_SUFFIX, SAFETENSORS)
    return default if into is None else into / default.name


def _save_with_torch(source: str, destination: Path) -> None:
    import torch

    from .._load.cast import duplicate
    from .._load.load import load_file

    verify_file(source)  # the new file has no checksums to find damage by
    tensors = load_file(source)
    # torch.save stores whole storages, and refuses one that holds several dtypes: each tensor needs its own.
    own = dict(zip(tensors, duplicate([*tensors.values()], torch.Tensor.clone), strict=True))
    with replacing(destination) as file:  # ours, so that a full disk is an OSError
        try:
            torch.save(own, file)
            file.flush()
        except (OSError, RuntimeError) as error:
            # After a failed write torch's own writer fails once more and hides the reason.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise OSError(reason.errno, f"cannot write: {reason.strerror}", str(destination)) from error
