"""Conversion to FlashPack: from a model, a state dict, or weight files. Imports torch only when it must."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .._core import native
from .._core.dtypes import dtype_name, dtype_to_string, string_to_dtype
from .._core.errors import may_need_torch
from .._core.names import filter_state_dict, listed, name_tuple, warn, warn_of_unmatched
from .._core.paths import StrPath, is_url, refuse_source, shown_url, text_path
from .._core.text import parse_size
from .._files.folder import (
    INDEX_SUFFIX,
    SAFETENSORS,
    STEM,
    SUFFIX,
    Library,
    adapters_beside,
    copy_companions,
    find_companions,
    index_path,
    placed,
    stem_of,
)
from .._files.sources import (
    are_safetensors,
    find_url,
    find_weights_to_convert,
    is_flashpack,
    refuse_own_source,
    shown_path,
    watched,
)
from .repack import Output, recode, rewrite
from .source import Source, find_source

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@may_need_torch("this conversion")
def convert_to_flashpack(
    model_or_state_dict_or_path_or_repo_id: StrPath | nn.Module | Mapping[str, Tensor],
    destination_path: StrPath | None = None,
    dtype: torch.dtype | str | None = None,
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
    use_transformers: bool = False,
    use_diffusers: bool = False,
    silent: bool | None = True,
    *,
    checksum: str | None = None,
    max_shard_size: int | str | None = None,
    compress: str | None = None,
    key: str | None = None,
    **kwargs: Any,
) -> str:
    """Convert to a FlashPack file and return its path, or that of the model folder that was made.

    The source is a model, a state dict, a weight file (.safetensors, or a torch file that
    weights_only=True accepts), a model folder, whole or sharded, the id of a repository on a model hub, or
    the URL of safetensors; or FlashPack already, which is written anew: compressed, or without `compress`
    not compressed. If nothing else is asked of one file, its checksums and a signature stay what they are.
    The destination may be a URL, too; then only the weights are written.
    Weights are taken as they are unless `use_transformers` or `use_diffusers` lets that library load them.

    A model folder or a repository becomes a model folder: `model[.variant].flashpack` with the source's
    configurations and other small files, unless the destination ends in .flashpack and is no folder. An
    adapter of PEFT or diffusers keeps its name (`adapter_model.flashpack`). An adapter beside a model,
    folders of further adapters and those that sentence-transformers' modules.json lists are copied as they
    are: no `dtype` for them. Other sources become a file, inside the destination if that is a folder or ends
    with a slash. The destination defaults to the source with its suffix swapped, to
    `model[.variant].flashpack` in the source folder, or, for a repository, to
    `<its name>[-subfolder][.variant].flashpack` in the working directory.

    `dtype`, torch's or a name such as "bfloat16", "bf16" or "torch.half", casts floating tensors only. `key`
    chooses the state dict of a torch checkpoint that holds more: "model", or "ema.model" where dicts are
    nested; without it "state_dict" is taken if there is one, with a warning that names what is left out.
    `checksum`, `max_shard_size` and `compress` as in `pack_to_file`: if there are shards, the path returned
    is their index's. Further arguments: `subfolder`, `variant`; `revision`,
    `token`, `cache_dir`, `local_files_only`, `force_download` for repositories; with a library, more of its
    from_pretrained's.

    Raises ValueError for a destination that is a source, a dtype that is none, shards or tensors that
    an index promises but that are missing, a whole pipeline; ImportError for a library that is missing;
    TypeError for arguments that nothing takes; for repositories what huggingface_hub raises; OSError.
    """
    options = ("ignore_names", "ignore_prefixes", "ignore_suffixes")
    ignored = zip(options, (ignore_names, ignore_prefixes, ignore_suffixes), strict=True)
    request = _Request(
        dtype=None if dtype is None else _name_of(dtype),
        checksum=checksum,
        shard_bytes=None if max_shard_size is None else parse_size(max_shard_size),
        silent=silent,
        compress=compress,
        destination=destination_path,
        ignore={option: name_tuple(option, names) for option, names in ignored},
        key=key,
        library=_library(use_transformers, use_diffusers),
        arguments=kwargs,
    )
    source = model_or_state_dict_or_path_or_repo_id
    if isinstance(source, str | os.PathLike):
        return (_convert_url if is_url(source) else _convert_path)(text_path(source), request)
    if destination_path is None:
        raise ValueError("destination_path is required for a model or a state dict")
    destination = text_path(destination_path)
    _pack(_state_of(source, key), destination, request)
    return _made(destination)


def _state_of(source: nn.Module | Mapping[str, Tensor], key: str | None) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        from .torch_files import choose_state_dict

        return choose_state_dict(source, key, "the dict")
    if key is not None:
        raise ValueError("key chooses a state dict of a torch checkpoint, and this is a model")
    return source.state_dict()


def _made(destination: str) -> str:
    """The file, or the index of the shards, that a conversion to `destination` has made; of a URL that."""
    if is_url(destination) or Path(destination).is_file():
        return destination
    return str(index_path(Path(destination)))


def _library(use_transformers: bool, use_diffusers: bool) -> Library | None:
    if use_transformers and use_diffusers:
        raise ValueError("use_transformers and use_diffusers exclude each other: one library loads the model")
    return "transformers" if use_transformers else "diffusers" if use_diffusers else None


@dataclass(frozen=True, kw_only=True)
class _Request(Output):
    """A conversion to `destination`: what it leaves out, and what reads its source."""

    destination: StrPath | None
    ignore: Mapping[str, Any]
    key: str | None
    library: Library | None
    arguments: dict[str, Any]


def _name_of(dtype: torch.dtype | str) -> str:
    name = dtype_name(dtype if isinstance(dtype, str) else dtype_to_string(dtype))
    if name not in native.dtypes():
        string_to_dtype(name)  # a name that is none fails before any work
    return name


def _convert_url(url: str, request: _Request) -> str:
    """Convert safetensors that a URL names, or those of a folder there, to a file or an object."""
    shown, library, arguments = shown_url(url), request.library, request.arguments
    if library is not None:
        raise ValueError(f"{shown}: {library} loads local folders and repositories, not URLs")
    variant = arguments.pop("variant", None)
    if given := [name for name, value in arguments.items() if value is not None]:
        raise TypeError(f"{shown}: unexpected arguments for a URL: {given}")
    name = PurePosixPath(shown).name
    is_file = name.endswith((SAFETENSORS, SUFFIX, ".json"))
    weights = url if is_file else find_url(url, variant, [SAFETENSORS])
    default = PurePosixPath(shown_url(weights)).name.removesuffix(".json").removesuffix(".index")
    made = default.removesuffix(SAFETENSORS).removesuffix(SUFFIX) + SUFFIX
    destination = made if request.destination is None else placed(request.destination, made)
    refuse_own_source(destination, [weights])
    write = _rewrite if name.endswith((SUFFIX, SUFFIX + INDEX_SUFFIX)) else _convert_files
    write(weights, destination, request)
    return _made(destination)


def _convert_path(text: str, request: _Request) -> str:
    if is_flashpack(Path(text)):
        return _rewrite_path(text, request)
    destination_path, library, arguments = request.destination, request.library, request.arguments
    source = find_source(text, arguments, request.silent)
    if arguments and library is None:
        raise TypeError(f"unexpected arguments without use_transformers or use_diffusers: {[*arguments]}")
    weights = find_weights_to_convert(source.place, source.variant) if library is None else None
    stem = stem_of(weights) if weights else STEM
    if is_url(destination_path):
        if weights is None:
            raise ValueError(f"{library} converts to files: copy the result to {shown_url(destination_path)}")
        url = placed(destination_path, source.destination(None, stem).name)
        _convert_files(str(weights), url, request)
        return url
    destination = source.destination(destination_path, stem)
    refuse_source(destination, source.files())
    companions = find_companions(source.place, stem) if source.makes_folder(destination_path) else None
    if weights:
        _convert_files(str(weights), str(destination), request)
    elif library:
        _convert_by_class(source, library, destination, request)
    if companions is None:
        if source.place.is_dir() and (left := adapters_beside(source.place, stem)):
            warn(
                f"{source.place}: only the model is converted, and not the adapter beside it: {listed(left)}"
            )
        return _made(str(destination))
    copy_companions(source.place, companions, destination.parent)
    return str(destination.parent)


def _rewrite_path(text: str, request: _Request) -> str:
    """Write a FlashPack file, or shards, anew."""
    given = [name for name, value in request.arguments.items() if value is not None]
    if request.library or given:
        what = f"use_{request.library}" if request.library else listed(given)
        raise ValueError(f"{text}: is a FlashPack file, and {what} is for other sources")
    if request.destination is None:
        raise ValueError(f"{text}: is already a FlashPack file: name a new file to write it anew")
    destination = placed(request.destination, Path(text).name.removesuffix(INDEX_SUFFIX))
    refuse_own_source(destination, [text])
    _rewrite(text, destination, request)
    return _made(destination)


def _rewrite(weights: str, destination: str, request: _Request) -> None:
    if request.key is not None:
        raise ValueError(f"{shown_path(weights)}: key chooses a state dict of a torch file, and this is none")
    if _changes_storage_alone(weights, request) and recode(
        weights, destination, request.compress, request.silent
    ):
        return
    if not rewrite(weights, destination, request.ignore, request):
        _pack_opened(weights, destination, request)


def _changes_storage_alone(weights: str, request: _Request) -> bool:
    """Whether a file is only to be compressed, or not any more, or is signed and to stay what it is."""
    given = (request.dtype, request.checksum, request.shard_bytes)
    if any(it is not None for it in given) or any(request.ignore.values()):
        return False
    return request.compress is not None or bool({"encoding", "signature"} & native.read_index(weights).keys())


def _convert_files(weights: str, destination: str, request: _Request) -> None:
    if is_url(weights) or are_safetensors(Path(weights)):
        if request.key is not None:
            shown = shown_path(weights)
            raise ValueError(f"{shown}: key chooses a state dict of a torch file, and this is none")
        if any(request.ignore.values()):
            warn_of_unmatched(request.ignore, native.call("names", path=weights))
        if _stream(weights, destination, request):
            return
    if is_url(weights):
        _pack_opened(weights, destination, request)
        return
    from .torch_files import read_metadata, read_state_dict

    path = Path(weights)
    _pack(read_state_dict(path, request.key), destination, request, read_metadata(path))


def _pack_opened(weights: str, destination: str, request: _Request) -> None:
    """Let torch cast what is already a file that loads."""
    from .._load.file import FlashPackFile

    with FlashPackFile(weights) as file:
        _pack(file.get_tensors(), destination, request, file.metadata())


def _convert_by_class(source: Source, library: Library, destination: Path, request: _Request) -> None:
    if request.key is not None:
        raise ValueError(f"key chooses a state dict of a torch file, and {library} loads the model")
    if not source.place.is_dir():
        raise ValueError(f"{source.place}: {library} loads model folders, not files")
    from .model_classes import load_model

    model = load_model(source.place, library, source.variant, request.arguments)
    _pack(model.state_dict(), destination, request, {"format": "pt"})


def _stream(weights: str, destination: str, request: _Request) -> bool:
    """Let safetensors go through the native side: bytes stream, no model and no torch.

    Returns whether it did: there are casts that only torch makes.
    """
    done = watched(
        "convert",
        "Converting",
        silent=request.silent,
        path=weights,
        destination=destination,
        dtype=request.dtype,
        checksum=request.checksum,
        shard_bytes=request.shard_bytes,
        compress=request.compress,
        **request.ignore,
    )
    return done is not None


def _pack(
    state: Mapping[str, Any],
    destination: StrPath,
    request: _Request,
    metadata: Mapping[str, str] | None = None,
) -> None:
    from .._save.pack import pack_to_file

    dtype = None if request.dtype is None else string_to_dtype(request.dtype)
    warn_of_unmatched(request.ignore, state)
    kept = filter_state_dict(state, **request.ignore)
    pack_to_file(
        kept,
        destination,
        dtype,
        silent=request.silent,
        metadata=metadata,
        checksum=request.checksum,
        max_shard_size=request.shard_bytes,
        compress=request.compress,
    )
