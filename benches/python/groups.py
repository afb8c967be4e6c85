"""What is compared with what: each group's contenders, states of the page cache, and limits beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import limits
import loads
import saves
from limits import Limit
from loads import Load
from saves import Convert, Save


@dataclass(frozen=True)
class Group:
    title: str
    contenders: Sequence[Load | Save | Convert]
    limits: dict[str, list[Limit]]  # by state; those of the best median is the bound
    bound: dict[str, str] = field(default_factory=dict)  # by state, where the bound is one of them by name
    touched: bool = False  # the time that counts ends when every page has been touched

    @property
    def states(self) -> list[str]:
        return list(self.limits)

    def find(self, state: str, name: str) -> Limit | Load | Save | Convert:
        return next(each for each in [*self.limits[state], *self.contenders] if each.name == name)


GROUPS = {
    "eager": Group(
        "load to the CPU, every byte in private memory",
        loads.EAGER,
        {"hot": limits.HOT, "cold": limits.COLD},
        {"hot": limits.FRESH},
    ),
    "lazy": Group(
        "load to the CPU, lazily, and touch every page",
        loads.LAZY,
        {"hot": limits.MAPPED, "cold": limits.COLD},
        touched=True,
    ),
    "module": Group(
        "load into a module and touch every page",
        loads.MODULE,
        {"hot": [*limits.HOT[:2], *limits.MAPPED], "cold": limits.COLD},
        touched=True,
    ),
    "save": Group("save from memory, fsync included", saves.SAVE, {"hot": limits.WRITE}),
    "convert": Group(
        "convert .safetensors, a program's start and fsync included",
        saves.CONVERT,
        {"hot": limits.WRITE[:1]},
        {"hot": saves.CP},
    ),
}
