"""Which keyword arguments a callable takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def keywords_of(method: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names of the parameters of `method`, and whether it takes keyword arguments of any other name."""
    parameters = inspect.signature(method).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    return named, len(named) < len(parameters)


def filter_kwargs_for_method(kwargs: dict[str, Any], method: Callable[..., Any]) -> dict[str, Any]:
    """Those of `kwargs` that `method` has a parameter for; all of them if it takes any."""
    named, takes_any = keywords_of(method)
    return kwargs if takes_any else {name: value for name, value in kwargs.items() if name in named}
