"""The tests of 0.4.5's source distribution, run against this package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import upstream
from processes import environment

TIMEOUT_SECONDS = 1200


def outcomes(folder: Path) -> dict[str, str]:
    """What came of each test, by `file::test` or `file::class::test`: "passed", "failed" or "skipped".

    One with several sets of parameters has failed if one of these has. Tests that need a network or a GPU
    are left out. `folder` is an empty one to work in.
    """
    for path in (upstream.sources() / "tests").glob("*.py"):
        (folder / path.name).write_text(_without_private_names(path.read_text()))
    report = folder / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "-m", "not network and not gpu"]
    places = [f"--basetemp={folder / 'tmp'}", f"--junit-xml={report}", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *places],
        env=environment(HF_HUB_OFFLINE="1"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    seen: dict[str, str] = {}
    for name, outcome in _reported(report):
        seen[name] = "failed" if "failed" in (outcome, seen.get(name)) else outcome
    return seen


def _without_private_names(source: str) -> str:
    """Names of the package that begin with `_` are not imported: only the tests that use them fail then."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flashpack"):
            public = [alias for alias in node.names if not alias.name.startswith("_")]
            node.names = public or [ast.alias("__doc__", "_")]
    tree.body = [node for node in tree.body if not _keeps_private_name(node)]
    return ast.unparse(tree)


def _keeps_private_name(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr.startswith("_")
    )


def _reported(report: Path) -> Iterator[tuple[str, str]]:
    for case in ElementTree.parse(report).iter("testcase"):
        module, *classes = case.get("classname", "").split(".")
        name = case.get("name", "").partition("[")[0]
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        yield "::".join([f"{module}.py", *classes, name]), outcome
