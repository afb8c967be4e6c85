"""Pushing what was saved, with a model card."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..._hub.client import CARD_NAME, PushOptions, push


def push_folder(folder: Path, options: PushOptions, patterns: Iterable[str], *, is_pipeline: bool) -> str:
    """Push the files of `patterns` with the repository's card, or diffusers' usual one; return its id."""
    from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card

    token: Any = options.token  # diffusers' annotation leaves out that it may be a bool

    def write_card(repo_id: str) -> None:
        card = load_or_create_model_card(repo_id, token=token, is_pipeline=is_pipeline)
        populate_model_card(card).save(folder / CARD_NAME)

    return push(folder, options, write_card, patterns)
