"""What differs between two models. Needs no torch."""

from __future__ import annotations

from typing import Any

from .._files.sources import ModelPath, model_path, shown_path, watched


def compare(first: ModelPath, second: ModelPath, *, silent: bool | None = True) -> dict[str, Any]:
    """The names that only one of two models has, the tensors that differ, and how many are equal.

    Paths as `load_file` takes them. Of a tensor that differs: `name`; `dtypes` and `shapes` in each;
    `values`, None where they cannot be compared: how many `elements`, how many are `different`, the `largest`
    difference that is a number (None for complex values), and how many are `unbounded`: infinite
    or NaN in one of the two. Raises as `load_file` before it reads, and OSError.
    """
    one, other = model_path(first), model_path(second)
    found: dict[str, Any] = watched("compare", "Comparing", silent=silent, path=one, other=other)
    return {"first": shown_path(one), "second": shown_path(other), **found}
