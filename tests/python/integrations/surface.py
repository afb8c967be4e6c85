"""The public names of a package's sources: `surface(folder)` reads them without importing anything.

Run with the folder of an unpacked sdist of 0.4.5, `python tests/python/integrations/surface.py FOLDER`
prints what `tests/fixtures/surface-0.4.5.txt` holds.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def surface(package: Path) -> list[str]:
    """A line for each public module, name, method and attribute; functions with their parameters' names."""
    lines = (line for path in sorted(package.rglob("*.py")) for line in _module(package, path))
    return list(dict.fromkeys(lines))


def _module(package: Path, path: Path) -> Iterator[str]:
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    yield f"import {module}"
    yield from _members(module, ast.parse(path.read_text()).body, imports=parts[-1] == "__init__")


def _members(owner: str, body: list[ast.stmt], *, imports: bool = False) -> Iterator[str]:
    for node in body:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, ast.Try):
            yield from _members(owner, node.body, imports=imports)
            continue
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.ImportFrom) and imports:
            names = [alias.asname or alias.name for alias in node.names]
        else:
            continue
        for name in filter(_is_public, names):
            yield f"{owner}.{name}" + (_parameters(node) if isinstance(node, _FUNCTIONS) else "")
            if isinstance(node, ast.ClassDef):
                yield from _members(f"{owner}.{name}", node.body)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__commit_id__", "__version__", "__version_tuple__")


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args)]
    if given.vararg:
        names.append(f"*{given.vararg.arg}")
    elif given.kwonlyargs:
        names.append("*")
    names += [each.arg for each in given.kwonlyargs]
    if given.kwarg:
        names.append(f"**{given.kwarg.arg}")
    return f"({', '.join(names)})"


if __name__ == "__main__":
    print("\n".join(surface(Path(sys.argv[1]) / "src" / "flashpack")))
