"""What a conversion's path or repository id stands for on disk, and where its result goes. Needs no torch."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._core.names import warn
from .._core.paths import StrPath, text_path, with_suffix
from .._core.progress import wants_bar
from .._files.folder import SUFFIX, checked_subfolder, names_folder, refuse_pipeline, weights_name

_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt"})


@dataclass(frozen=True)
class Source:
    """A weight file or a model folder on disk. `default` is the file made of it without a destination.

    None stands for one in the model folder itself.
    """

    place: Path
    variant: str | None
    default: Path | None

    def files(self) -> list[Path]:
        """What the conversion must not write onto. Earlier results in the folder may be replaced."""
        if self.place.is_file():
            return [self.place]
        return [path for path in self.place.iterdir() if path.is_file() and path.suffix != SUFFIX]

    def makes_folder(self, wished: StrPath | None) -> bool:
        """Whether a model folder is made of this one: unless `wished` is None or names a FlashPack file."""
        if wished is None or not self.place.is_dir():
            return False
        return names_folder(wished) or Path(text_path(wished)).suffix.lower() != SUFFIX

    def destination(self, wished: StrPath | None, stem: str) -> Path:
        """The file to write: in a folder, the name that loads look for there, or `stem` in its place.

        Raises NotADirectoryError for a file where a model folder would go.
        """
        name = weights_name(self.variant, stem=stem)
        default = self.default or self.place / name
        if wished is None:
            return default
        path = Path(text_path(wished))
        if not self.makes_folder(wished):
            return path / default.name if names_folder(wished) else path
        if path.is_file():
            reason = f"A model folder goes to a folder, or to a file that ends in {SUFFIX}"
            raise NotADirectoryError(errno.ENOTDIR, reason, str(path))
        return path / name


def find_source(text: str, arguments: dict[str, Any], silent: bool | None) -> Source:
    """The source of this path or repository id, downloaded if it is one, with progress unless `silent`.

    Removes from `arguments` what it takes: subfolder, variant and the hub options. Raises FileNotFoundError,
    ValueError for a subfolder or variant that leads out of the folder and for a whole pipeline, and what
    huggingface_hub raises.
    """
    from .._hub.client import HubOptions, is_repo_id

    options = HubOptions.take(arguments)
    subfolder = checked_subfolder(arguments.pop("subfolder", None))
    variant = arguments.pop("variant", None) or None
    weights_name(variant)  # a variant that is none fails before any work
    path = Path(text)
    default: Path | None = None
    if path.exists():
        if options.revision:
            warn(f"{path}: revision is for repositories, and this is on disk")
        if variant and path.is_file():
            warn(f"{path}: variant chooses among a folder's files, and this is a file")
        place = path / subfolder
        if not place.is_dir():
            default = with_suffix(place, _WEIGHT_SUFFIXES, SUFFIX)
    elif is_repo_id(text) and path.suffix.lower() not in (*_WEIGHT_SUFFIXES, SUFFIX):
        from .._hub.download import download_model

        place = download_model(text, options, subfolder, variant, quiet=not wants_bar(silent))
        name = "-".join([path.name, *filter(None, subfolder.split("/"))])
        default = Path(weights_name(variant, stem=name))
    else:
        raise FileNotFoundError(errno.ENOENT, "Not a file, a folder, or a valid repository id", text)
    if not place.exists():
        raise FileNotFoundError(errno.ENOENT, "No such file or folder", str(place))
    refuse_pipeline(place)
    return Source(place, variant, default)
