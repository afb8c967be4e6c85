"""Every snippet and command of docs/, run as it is written; what a page says is printed is compared."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from processes import environment, python, succeed

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PRINTS = "It prints\n\n"
# One process for a page: its Python blocks share their names, its shell blocks their folder.
RUN = """
import json, subprocess, sys
namespace = {"__name__": "__main__"}
for language, code in json.load(open(sys.argv[1])):
    if language == "python":
        exec(compile(code, sys.argv[2], "exec"), namespace)
    else:
        subprocess.run(["bash", "-ec", code], check=True, stdout=subprocess.DEVNULL)
"""


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Language, code and what stands between the block before and this one."""
    found = re.split(r"^```(\w+)\n(.*?)^```\n", text, flags=re.MULTILINE | re.DOTALL)
    return [(found[i + 1], found[i + 2], found[i]) for i in range(0, len(found) - 1, 3)]


def commands(code: str) -> str:
    """The shell block without calls of make, whose targets must exist."""
    lines = code.splitlines()
    for line in lines:
        if line.startswith("make "):
            assert line.split()[1] in TARGETS, f"no such target: {line}"
    return "\n".join(line for line in lines if not line.startswith("make "))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path, tmp_path: Path) -> None:
    found = blocks(page.read_text())
    assert all(language in ("python", "bash", "text") for language, _, _ in found)
    runnable = [
        (language, code if language == "python" else commands(code))
        for language, code, _ in found
        if language != "text"
    ]
    (tmp_path / "blocks.json").write_text(json.dumps(runnable))
    (tmp_path / "work").mkdir()
    printed = succeed(
        python(
            "-c", RUN, tmp_path / "blocks.json", page.name, env=with_commands(tmp_path), cwd=tmp_path / "work"
        )
    )
    shown = [code for language, code, before in found if language == "text" and before.endswith(PRINTS)]
    assert [line.rstrip() for line in printed.splitlines()] == "".join(shown).splitlines()


def with_commands(folder: Path) -> dict[str, str]:
    """An environment where `flashpack` and `python` are those of the tests."""
    programs = folder / "bin"
    programs.mkdir()
    for name, module in (("flashpack", "-m flashpack"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        program.chmod(0o755)
    return environment(PATH=os.pathsep.join([str(programs), os.environ["PATH"]]))


def test_the_pages_are_found() -> None:
    assert {"design", "format", "migrating"} <= {page.stem for page in PAGES}


def test_workflows_call_targets_that_exist() -> None:
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    text = "".join(file.read_text() for file in files)
    called = set(re.findall(r"run: make ([a-z-]+)$", text, re.MULTILINE))
    listed = {target for targets in re.findall(r"target: \[(.*)\]", text) for target in targets.split(", ")}
    assert {"lint", "test", "thorough", "wheel-test", "sdist"} <= called
    assert {"asan", "mutations", "reliability"} <= listed
    assert called | listed <= TARGETS


def test_workflows_pin_what_they_use() -> None:
    text = "".join(file.read_text() for file in (ROOT / ".github" / "workflows").glob("*.yml"))
    used = [action for action in re.findall(r"uses: (\S+)", text) if not action.startswith("./")]
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used), used


def test_links_lead_to_files() -> None:
    for page in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]:
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert not missing, f"{page.name}: {missing}"


def test_the_design_is_of_these_sources() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    roots = [ROOT, ROOT / "src", ROOT / "python" / "flashpack"]

    def found(path: str) -> list[Path]:
        return [root / path for root in roots if (root / path).exists()]

    paths = set(re.findall(r"`((?:\w+/)*[\w-]+\.(?:rs|py|cpp|md|toml)|(?:\w+/)+\w*)`", text))
    assert len(paths) > 60
    assert not [path for path in paths if len(found(path)) != 1]
    held = re.findall(r"((?:`\w+`(?:, | and ))*`\w+`) in `([\w/]+\.\w+)`", text)
    assert len(held) > 10
    for names, path in held:
        source = found(path)[0].read_text()
        missing = [name for name in re.findall(r"`(\w+)`", names) if name not in source]
        assert not missing, f"{path} has no {missing}"
