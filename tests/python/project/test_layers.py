"""The rooms of the package: which folder may use which, read off the imports."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import flashpack

PACKAGE = Path(flashpack.__file__).parent
# Each uses only those before it. What is not among them are the public names: they come last.
ROOMS = (
    *("_core", "_files", "_load", "_ranks", "_module", "_parallel"),
    *("_save", "_hub", "_inspect", "_convert", "public", "integrations"),
)
# Public names that are of an integration, or that are for its sake.
CROSSINGS = {("__init__", "integrations")}
# They only pass names of all rooms on.
FRONTS = {"__init__", "bench.__main__", "integrations", "integrations.patch"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, without the package's own."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def room_of(module: str) -> str:
    room = module.partition(".")[0]
    return room if room in ROOMS else "public"


def imports(module: str, path: Path, known: dict[str, Path], *, lazy: bool) -> Iterator[str]:
    """The modules of the package that `module` imports, with `lazy` also those within functions."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part != "__init__"]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            owner = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                name = ".".join([*owner, alias.name])
                yield name if name in known else ".".join(owner) or "__init__"


def test_no_import_runs_up() -> None:
    known = modules()
    assert len(known) > 100
    for module, path in known.items():
        for imported in imports(module, path, known, lazy=True):
            if (module, room_of(imported)) not in CROSSINGS:
                place, other = ROOMS.index(room_of(module)), ROOMS.index(room_of(imported))
                assert other <= place, f"{module} imports {imported}"


def test_no_files_import_each_other() -> None:
    known = modules()
    edges = {
        module: set(imports(module, path, known, lazy=True)) - {module} for module, path in known.items()
    }
    while leaves := [module for module, others in edges.items() if not others & edges.keys()]:
        for leaf in leaves:
            del edges[leaf]
    assert not edges, "these import each other in a circle, or what does"


def test_the_rooms_are_eight_floors_high() -> None:
    known = modules()
    below: dict[str, set[str]] = {}
    for module in known.keys() - FRONTS:
        for imported in imports(module, known[module], known, lazy=True):
            below.setdefault(floor_of(module), set()).add(floor_of(imported))

    @functools.cache
    def floors(room: str) -> int:
        return 1 + max((floors(other) for other in below.get(room, set()) - {room}), default=0)

    assert max(map(floors, below)) <= 8, {room: floors(room) for room in below}


def floor_of(module: str) -> str:
    """The room of `module`: of integrations one for each library."""
    room, *rest = module.split(".")
    if room == "integrations" and rest and (PACKAGE / room / rest[0]).is_dir():
        return f"{room}.{rest[0]}"
    return room


def test_folders_are_no_lists() -> None:
    for folder in {path.parent for path in modules().values()}:
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 12, f"{folder.name}: {len(files)} files"


def test_no_function_is_too_long_to_take_in() -> None:
    """Docstrings do not count: those of public functions say all that a caller has to know."""
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                told = node.body[0] if ast.get_docstring(node) else None
                lines = span(node) - (span(told) if told else 0)
                assert lines <= 40, f"{module}.{node.name} has {lines} lines"


def span(node: ast.stmt) -> int:
    """How many lines it takes."""
    return (node.end_lineno or node.lineno) - node.lineno + 1
