"""Every public name of flashpack 0.4.5 is here, and every call that fits its signatures fits ours."""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
from typing import Any

import pytest
import upstream
from helpers import FIXTURES
from surface import surface

LISTED = (FIXTURES / "surface-0.4.5.txt").read_text().splitlines()

_CLICK = "click.style does it; the release's command line used it for itself"
_PASTED = "a part of diffusers' own pipeline loader, which the release had a changed copy of"
ABSENT = {
    **{
        f"flashpack.__main__.{colour}": _CLICK
        for colour in ["green", "red", "yellow", "blue", "magenta", "cyan"]
    },
    "flashpack.integrations.diffusers.pipeline.LIBRARIES": _PASTED,
    "flashpack.integrations.diffusers.pipeline.SUPPORTED_DEVICE_MAP": _PASTED,
    "flashpack.integrations.diffusers.pipeline.load_sub_model_flashpack": _PASTED,
}


def test_the_list_is_that_of_the_release() -> None:
    assert surface(upstream.sources() / "src" / "flashpack") == LISTED


def find(name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    try:
        value = importlib.import_module(owner)
    except ModuleNotFoundError as error:
        if not f"{owner}.".startswith(f"{error.name}."):
            raise
        value = find(owner)
    if attribute in getattr(value, "__dataclass_fields__", {}):
        return value.__dataclass_fields__[attribute]
    return getattr(value, attribute)


@pytest.mark.parametrize("line", LISTED, ids=lambda line: line.partition("(")[0])
def test_a_public_name(line: str) -> None:
    word, _, module = line.partition(" ")
    if word == "import":
        importlib.import_module(module)
        return
    match = re.fullmatch(r"([\w.]+)(?:\((.*)\))?", line)
    assert match
    name, parameters = match.groups()
    if name in ABSENT:
        with pytest.raises(AttributeError):
            find(name)
        return
    value = find(name)
    if parameters is not None and callable(value):
        takes(value, parameters.split(", ") if parameters else [])


def takes(function: Any, parameters: list[str]) -> None:
    """Every parameter by its name, and those that had a place of their own at the same place."""
    ours = inspect.signature(function)
    instance = [name for name in parameters if name == "self"]
    names = [name for name in parameters if name not in ("self", "cls") and not name.startswith("**")]
    placed = list(itertools.takewhile(lambda name: name[0] != "*", names))
    bound = ours.bind(*instance, *placed).arguments
    assert all(value in (name, "self") for name, value in bound.items() if isinstance(value, str))
    ours.bind(*instance, **{name: None for name in names if name[0] != "*"})
