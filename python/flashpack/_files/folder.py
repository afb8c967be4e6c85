"""Model folders, as diffusers and transformers lay them out: names, configurations, small files. No torch."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from .._core.paths import StrPath, is_url, text_path
from .new_file import replacing

SUFFIX = ".flashpack"
STEM = "model"  # as flashpack 0.4.5 and diffusers' own use_flashpack=True name the file
SAFETENSORS = ".safetensors"
INDEX_SUFFIX = ".index.json"  # follows the name that shards were saved under
CONFIG = "config.json"
PIPELINE = "model_index.json"
ADAPTER_CONFIG = "adapter_config.json"
# PEFT and diffusers find adapters by these names, so their weights keep them.
ADAPTER_STEMS = ("adapter_model", "pytorch_lora_weights", "learned_embeds")
ADAPTER_FILES = tuple(
    f"{stem}{middle}{suffix}"
    for stem in ADAPTER_STEMS
    for middle in ("", ".*")
    for suffix in (SAFETENSORS, ".bin")
)
MODEL_STEMS = (STEM, "diffusion_pytorch_model", "pytorch_model")  # of whole checkpoints, the likeliest first
_OWN_STEMS = (STEM, *ADAPTER_STEMS)

# What a model needs beside its weights: configurations, tokenizers, templates, its own code.
COMPANIONS = (
    *("*.json", "*.jinja", "*.py", "*.txt"),
    *("*.bpe", "*.codes", "*.model", "*.spm", "*.tiktoken", "*.tokenizer"),
)
_MODULES = "modules.json"  # of sentence-transformers: the sub-folders of the model's other modules
_CHAT_TEMPLATES = "additional_chat_templates"  # of transformers
_INDEXES = ("*.index.json", "*.index.*.json", PIPELINE)  # they would speak of files that are not there

Library: TypeAlias = Literal["diffusers", "transformers"]


def weights_name(variant: str | None = None, suffix: str = SUFFIX, stem: str = STEM) -> str:
    """The name of a folder's weights: model.flashpack, model.fp16.flashpack.

    Raises ValueError for a variant that is no part of a file name.
    """
    if variant is not None and not is_plain_name(variant):
        raise ValueError(f"variant must be a part of a file name, not {variant!r}")
    return f"{stem}.{variant}{suffix}" if variant else f"{stem}{suffix}"


def library_weights_name(path: Path) -> str:
    """What the library of the model in the folder of the FlashPack file `path` names it as safetensors."""
    stem = stem_of(path)
    if stem == STEM and library_of(path.parent) == "diffusers":
        stem = "diffusion_pytorch_model"
    return weights_name(variant_of(path), SAFETENSORS, stem)


def index_path(destination: Path) -> Path:
    """The index of the shards that are saved as `destination`."""
    return destination.with_name(destination.name + INDEX_SUFFIX)


def stem_of(path: Path) -> str:
    """The stem of the FlashPack file that `path`, a shard or an index of weights, is or is converted to."""
    stem = re.split(r"[.-]", path.name)[0]
    return stem if stem in ADAPTER_STEMS else STEM


def is_weights_name(name: str) -> bool:
    """Whether `name` is model[.variant].flashpack, or an adapter's name in its place."""
    return name.partition(".")[0] in _OWN_STEMS and name.endswith(SUFFIX)


def variant_of(path: Path) -> str | None:
    """The variant in a name that `is_weights_name` knows; None for any other name."""
    if not is_weights_name(path.name):
        return None
    return path.name.removesuffix(SUFFIX).partition(".")[2] or None


def is_plain_name(name: str) -> bool:
    """Whether it is one name on any system's idea of a path: what reads it stays in its folder."""
    return name not in ("", ".", "..") and not any(character in name for character in "/\\:\0")


def names_folder(destination: StrPath) -> bool:
    """Whether it is an existing folder, or ends as only a folder's path or URL does."""
    return Path(text_path(destination)).is_dir() or text_path(destination).endswith(os.sep)


def placed(destination: StrPath, name: str) -> str:
    """`destination`, or of a folder or a bucket the file or object `name` in it."""
    text = text_path(destination)
    if is_url(text):
        place, mark, query = text.partition("?")
        is_folder = place.endswith("/") or "/" not in place.partition("://")[2]
        return f"{place.rstrip('/')}/{name}{mark}{query}" if is_folder else text
    return str(Path(text, name)) if names_folder(text) else text


def checked_subfolder(subfolder: str | None) -> str:
    """`subfolder` as a plain relative path, empty for none. Raises ValueError for one that leads out."""
    path = PurePosixPath(text_path(subfolder) if subfolder else "")
    if path.is_absolute() or ".." in path.parts or "\\" in str(path):
        raise ValueError(f"subfolder must lie inside of its folder: {subfolder!r}")
    return "" if path == PurePosixPath() else str(path)


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """A JSON object of the folder, empty when there is no such file. Raises ValueError, OSError."""
    path = folder / name
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a configuration: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a configuration: it is a JSON {type(content).__name__}")
    return content


def require_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """`read_config`, but raises FileNotFoundError when there is no such file."""
    if not (folder / name).is_file():
        raise FileNotFoundError(errno.ENOENT, f"No {name} in the folder", str(folder))
    return read_config(folder, name)


def library_of(folder: Path) -> Library | None:
    """The library whose configuration is in the folder. Raises as `read_config`."""
    config = read_config(folder)
    if "_class_name" in config:
        return "diffusers"
    return "transformers" if {"architectures", "model_type", "transformers_version"} & set(config) else None


def refuse_pipeline(folder: Path) -> None:
    """Raise ValueError for a whole diffusers pipeline, naming the components that are models."""
    if not (folder / PIPELINE).is_file():
        return
    entries = read_config(folder, PIPELINE)
    parts = [name for name in entries if is_plain_name(name) and (folder / name / CONFIG).is_file()]
    which = ", ".join(parts) or "its models"
    raise ValueError(
        f"{folder}: a diffusers pipeline has many models; choose one with --subfolder (subfolder=): {which}"
    )


def find_companions(folder: Path, stem: str) -> list[Path]:
    """The files, relative to `folder`, that its model needs beside its own weights, which `stem` names.

    These are small files, chat templates, `adapters_beside`, and everything in `module_folders`. Raises as
    that.
    """
    small = [
        path
        for path in folder.iterdir()
        if _matches(path.name, COMPANIONS) and not _matches(path.name, _INDEXES)
    ]
    small += [folder / name for name in adapters_beside(folder, stem)]
    within = [*module_folders(folder), _CHAT_TEMPLATES]
    deep = [path for name in within for path in (folder / name).rglob("*")]
    return sorted({path.relative_to(folder) for path in (*small, *deep) if path.is_file()})


def adapters_beside(folder: Path, stem: str) -> list[str]:
    """The weight files of adapters that lie beside those that `stem` names, in formats of the libraries."""
    names = (path.name for path in folder.iterdir() if _matches(path.name, ADAPTER_FILES))
    return sorted(name for name in names if name.partition(".")[0] != stem)


def module_folders(folder: Path) -> list[str]:
    """The sub-folders with weights of their own: modules of sentence-transformers, further adapters of PEFT.

    Raises ValueError for a module outside of the folder.
    """
    adapters = [path.parent.name for path in sorted(folder.glob(f"*/{ADAPTER_CONFIG}"))]
    return [*filter(None, map(checked_subfolder, _listed_modules(folder))), *adapters]


def _listed_modules(folder: Path) -> list[str]:
    try:
        listed: Any = json.loads((folder / _MODULES).read_bytes())
        return [str(module["path"]) for module in listed]
    except (FileNotFoundError, ValueError, RecursionError, LookupError, TypeError):
        return []  # not there, or of the same name but no list of modules


def copy_companions(folder: Path, companions: Iterable[Path], destination: Path) -> None:
    """Copy these files of `folder`. Raises OSError, with some of them copied."""
    if folder.resolve() == destination.resolve():
        return
    for path in companions:
        with (folder / path).open("rb") as file, replacing(destination / path) as copy:
            shutil.copyfileobj(file, copy)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
