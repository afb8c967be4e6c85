"""Names of tensors: which an operation leaves out, and what messages say of names and keyword arguments."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar

T = TypeVar("T")

# Text, as it is compared with the paths of frames.
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120
# What wrappers put in front of the names of what they hold.
_WRAPPERS = {
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "base_model.model.": "PEFT",
    "base_layer.": "PEFT",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "checkpoint_wrapper",
}


def is_ignored_tensor_name(
    name: str,
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
) -> bool:
    """True when `name` is listed, starts or ends with what is listed, or does not fit `include`."""
    return (
        name in (ignore_names or ())
        or name.startswith(tuple(ignore_prefixes or ()))
        or name.endswith(tuple(ignore_suffixes or ()))
        or (include is not None and not _patterns(tuple(include)).fit(name))
    )


class Patterns:
    """Patterns of `include=`, compared with a name all at once: there may be thousands of both.

    A pattern fits the name that it is. With `*`, `?` or `[` it is also a glob for the whole name, where `*`
    stands for dots as well. Any other is the name of a tensor or of a module, and fits all below it:
    "layers.1" fits "layers.1.bias", not "layers.10.bias".
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._names = frozenset(patterns)
        globs = {pattern for pattern in self._names if any(mark in pattern for mark in "*?[")}
        self._modules = {pattern.removesuffix(".") for pattern in self._names - globs}
        self._glob = re.compile("|".join(map(fnmatch.translate, sorted(globs)))) if globs else None

    def fit(self, name: str) -> bool:
        """Whether one of them fits `name`."""
        return (
            name in self._names
            or not self._modules.isdisjoint(_modules_of(name))
            or (self._glob is not None and self._glob.match(name) is not None)
        )

    def fit_any(self, names: Set[str], modules: Set[str]) -> bool:
        """Whether one of them fits one of `names`, which lie in these modules."""
        known = not self._names.isdisjoint(names) or not self._modules.isdisjoint(modules)
        return known or any(map(self.fit, names))


# The patterns of a load or a command, which are asked about one name after another.
_patterns = functools.lru_cache(maxsize=4)(Patterns)


def _modules_of(name: str) -> list[str]:
    """What stands before each dot of `name`."""
    return [name[:place] for place, mark in enumerate(name) if mark == "."]


def included(
    shown: str, names: Iterable[str], include: Sequence[str], option: str = "include: "
) -> list[str]:
    """Those `names` of a file that `include` selects. Raises ValueError for a pattern that fits none."""
    known = dict.fromkeys(names)
    modules = {module for name in known for module in _modules_of(name)}
    for pattern in include:
        if not Patterns([pattern]).fit_any(known.keys(), modules):
            hint = close_match(pattern, [*modules, *known])
            meant = f"; did you mean {quoted(hint)}?" if hint else ""
            raise ValueError(
                f"{clipped(shown)}: {option}{quoted(pattern)} fits none of {len(known)} tensors{meant}"
            )
    return list(filter(Patterns(include).fit, known))


def include_tuple(include: Iterable[str] | None) -> tuple[str, ...] | None:
    """The patterns of `include=`; None for all. Raises ValueError for an empty list and a lone string."""
    if include is None:
        return None
    if not (patterns := name_tuple("include", include)):
        raise ValueError("include is empty, which selects nothing: leave it out to load everything")
    return patterns


def filter_state_dict(
    state_dict: Mapping[str, T],
    ignore_names: Iterable[str] | None = None,
    ignore_prefixes: Iterable[str] | None = None,
    ignore_suffixes: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
) -> dict[str, T]:
    """The entries of `state_dict` whose names are not ignored, in its order."""
    return {
        name: value
        for name, value in state_dict.items()
        if not is_ignored_tensor_name(name, ignore_names, ignore_prefixes, ignore_suffixes, include)
    }


def name_tuple(option: str, names: Iterable[str] | None) -> tuple[str, ...]:
    """`names` as a tuple. Raises ValueError for a lone string, whose letters would be taken as names."""
    if isinstance(names, str):
        raise ValueError(f"{option} must be a list of strings, not the string {names!r}")
    result = tuple(names or ())
    for name in result:
        if not isinstance(name, str):
            raise ValueError(f"{option} must hold strings, not {type(name).__name__}")
        if not is_utf8(name):
            raise ValueError(f"{option} must hold UTF-8 text, not {name!r}")
    return result


def is_utf8(text: str) -> bool:
    """Whether `text` can be encoded: False for lone surrogates, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clipped(text: str, length: int = 200) -> str:
    """`text`; of a longer one its beginning and end."""
    return text if len(text) <= length else f"{text[: length // 2]}…{text[1 - length // 2 :]}"


def quoted(name: str) -> str:
    """A name as Python writes it, in so few characters that a message can hold it."""
    return repr(clipped(name))


def listed(names: Sequence[str], room: int = 800) -> str:
    """`names` as Python writes a list, as many of them as take about `room` bytes."""
    shown: list[str] = []
    for name in names:
        room -= len(quoted(name).encode()) + 2
        if shown and room < 0:
            shown.append(f"… and {len(names) - len(shown)} more")
            break
        shown.append(quoted(name))
    return f"[{', '.join(shown)}]"


def close_match(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` is most probably a misspelling of."""
    return next(iter(difflib.get_close_matches(name[:100], list(known), 1, 0.75)), None)


def naming_hint(file: Sequence[str], model: Sequence[str]) -> str:
    """How the names that only a file has, and those that only a model has, may be meant to be the same.

    Empty if nothing is alike.
    """
    return _wrapper_hint(file, model) or _prefix_hint(file, model) or _spelling_hint(file, model)


def _wrapper_hint(file: Sequence[str], model: Sequence[str]) -> str:
    of_model = {_unwrapped(name): name for name in model}
    for name in file:
        other = of_model.get(_unwrapped(name), name)
        for wrapper, origin in _WRAPPERS.items():
            in_file, in_model = f".{wrapper}" in f".{name}", f".{wrapper}" in f".{other}"
            if in_file != in_model:
                has, lacks, act = ("file", "model", "save") if in_file else ("model", "file", "load into")
                return (
                    f"names of the {has} have {wrapper!r}, as {origin} makes them, those of the {lacks} do "
                    f"not: {act} what is inside of the wrapper"
                )
    return ""


def _unwrapped(name: str) -> str:
    dotted = f".{name}"
    for wrapper in _WRAPPERS:
        dotted = dotted.replace(f".{wrapper}", ".")
    return dotted


def _prefix_hint(file: Sequence[str], model: Sequence[str]) -> str:
    for one, names, rest, others in (("file", file, "model", model), ("model", model, "file", file)):
        if prefix := _prefix_of(names, others):
            return f"names of the {one} begin with {quoted(prefix)}, those of the {rest} do not"
    return ""


def _prefix_of(longer: Sequence[str], shorter: Collection[str]) -> str | None:
    """What stands in front of the same name in `longer` for most of `shorter`."""
    known = set(shorter)
    for name in longer[:20]:
        parts = name.split(".")
        for depth in range(1, min(len(parts), 5)):
            if ".".join(parts[depth:]) in known:
                prefix = ".".join(parts[:depth]) + "."
                alike = sum(each.removeprefix(prefix) in known for each in longer if each.startswith(prefix))
                if 2 * alike >= len(known):
                    return prefix
    return None


def _spelling_hint(file: Sequence[str], model: Sequence[str]) -> str:
    pairs = [(name, close_match(name, model[:500])) for name in file[:3]]
    return ", ".join(f"{quoted(name)} may be {quoted(match)}" for name, match in pairs if match)


def warn_of_unused(unused: Iterable[str], known: Iterable[str]) -> None:
    """Warn about keyword arguments that nothing has taken, each with the one of `known` that is like it."""
    names, candidates = sorted(unused), list(known)
    if not names:
        return
    hints = [(name, close_match(name, candidates)) for name in names[:20]]
    meant = ", ".join(f"{hint!r} for {quoted(name)}" for name, hint in hints if hint)
    warn(
        f"unknown keyword arguments are ignored: {listed(names)}"
        + (f"; did you mean {meant}?" if meant else "")
    )


def warn_of_unmatched(ignore: Mapping[str, Sequence[str]], names: Iterable[str]) -> None:
    """Warn about each of ignore_names, ignore_prefixes and ignore_suffixes that fits none of `names`."""
    known = list(names)
    for option, values in ignore.items():
        for value in values:
            if not any(is_ignored_tensor_name(name, **{option: [value]}) for name in known):
                hint = close_match(value, known) if option == "ignore_names" else None
                meant = f" (did you mean {quoted(hint)}?)" if hint else ""
                warn(f"{option}: {quoted(value)} fits no tensor's name{meant}")


def warn(message: str) -> None:
    """A UserWarning that points at the first caller outside of this package."""
    level = 1
    while sys._getframe(level).f_code.co_filename.startswith(_PACKAGE):
        level += 1
    warnings.warn(f"flashpack: {message}", stacklevel=level + 1)


def keywords_of(method: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names of the parameters of `method`, and whether it takes keyword arguments of any other name."""
    parameters = inspect.signature(method).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    return named, len(named) < len(parameters)


def filter_kwargs_for_method(kwargs: dict[str, Any], method: Callable[..., Any]) -> dict[str, Any]:
    """Those of `kwargs` that `method` has a parameter for; all of them if it takes any."""
    named, takes_any = keywords_of(method)
    return kwargs if takes_any else {name: value for name, value in kwargs.items() if name in named}


def initialiser(cls: type[Any], default: Callable[..., Any]) -> Callable[..., Any]:
    """The method of `cls` that its `flashpack_init_method` names, if it has both, or `default`."""
    found: Callable[..., Any] = getattr(cls, getattr(cls, "flashpack_init_method", None) or "", default)
    return found
