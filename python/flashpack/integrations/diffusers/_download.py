"""The files of a pipeline's repository that a load needs: each component in one format only."""

from __future__ import annotations

from pathlib import Path

from ..._core.paths import StrPath
from ..._hub.client import HubOptions, fetch
from .._weights import has_weights, shard_names, weights_name
from ._classes import holds_several, is_diffusers_module, is_transformers_model, saved_class
from ._index import Index, read_index

# Configs, tokenizers (vocabularies, merges, sentencepiece models, chat templates), code of custom components.
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "*.py"]


def fetch_pipeline(source: StrPath, hub: HubOptions, variant: str | None) -> tuple[Path, Index]:
    """The local folder of a pipeline and its index; what it lacks of a repository is downloaded.

    Raises what `fetch` and `read_index` raise.
    """
    folder = fetch(source, hub, [*_SMALL, *_packed("*", variant)])
    index = read_index(folder)
    if Path(source).is_dir():
        return folder, index
    if variant is not None:
        patterns = [
            pattern for name in _unpacked(folder, index, [variant]) for pattern in _of_variant(name, variant)
        ]
        if patterns:
            folder = fetch(source, hub, patterns)
    lacking = [name for name in _unpacked(folder, index, [variant]) if not _has_safetensors(folder / name)]
    if variant is not None and lacking:
        folder = fetch(source, hub, [pattern for name in lacking for pattern in _packed(name, None)])
        lacking = _unpacked(folder, index, [variant, None])
    lacking = [name for name in lacking if not _has_safetensors(folder / name)]
    if lacking:
        folder = fetch(source, hub, [pattern for name in lacking for pattern in _plain(name)])
    return folder, index


def _packed(component: str, variant: str | None) -> list[str]:
    return [f"{component}/{name}" for name in (weights_name(variant), *shard_names(variant))]


def _unpacked(folder: Path, index: Index, variants: list[str | None]) -> list[str]:
    """The components that are models and have no FlashPack file of these variants.

    One that holds several models comes with a pattern for the folders of all but the first.
    """
    names: list[str] = []
    for component, entry in index.entries.items():
        cls = saved_class(entry.library, entry.name)
        if _is_model(cls) and not any(has_weights(folder / component, variant) for variant in variants):
            names += [component, f"{component}_*"] if cls and holds_several(cls) else [component]
    return names


def _is_model(cls: type | None) -> bool:
    return cls is None or is_transformers_model(cls) or is_diffusers_module(cls) or holds_several(cls)


def _has_safetensors(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _of_variant(component: str, variant: str) -> list[str]:
    return [f"{component}/*.{variant}.safetensors", f"{component}/*.{variant}-*.safetensors"]


def _plain(component: str) -> list[str]:
    stems = ("model", "diffusion_pytorch_model")
    return [f"{component}/{stem}{rest}.safetensors" for stem in stems for rest in ("", "-*-of-*")]
