"""Names of model classes, with and without FlashPack's own in front."""

from __future__ import annotations

from typing import Any

from ...mixin import FlashPackMixin

_PREFIX = "FlashPack"


def architecture_of(cls: type[Any]) -> str:
    """The class name that a configuration should give: of a class that adds only a mixin, its base's.

    Other tools and the auto classes know that one.
    """
    plain = (base for base in cls.__mro__ if not issubclass(base, FlashPackMixin))
    adds_nothing = "forward" not in vars(cls) and "__init__" not in vars(cls)
    if issubclass(cls, FlashPackMixin) and adds_nothing:
        return next(plain).__name__
    return cls.__name__


def without_prefix(architectures: list[str] | None) -> list[str] | None:
    """Architectures as transformers names them: 0.4.5 wrote FlashPackBertModel for BertModel."""
    return None if architectures is None else [name.removeprefix(_PREFIX) for name in architectures]
