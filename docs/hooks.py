"""Adds what lies outside of docs/ to the site: the README as its first page, the examples, the charts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
FOLDERS = ("examples", "benches/results")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside of docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=_as_in_docs((ROOT / path).read_text())))
    for folder in FOLDERS:
        for path in sorted(file for file in (ROOT / folder).rglob("*") if file.is_file()):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that lead out of docs/ lead to what `on_files` has added."""
    depth = page.file.src_uri.count("/")
    out, inside = "../" * (depth + 1), "../" * depth
    for path, name in PAGES.items():
        markdown = markdown.replace(f"]({out}{path}", f"]({inside}{name}")
    markdown = re.sub(rf"\]\({re.escape(out)}(?=examples|benches)", f"]({inside}", markdown)
    return markdown.replace("examples/cpp)", "examples/cpp/README.md)")


def _as_in_docs(text: str) -> str:
    """The text of a page of the root as one of docs/."""
    text = text.replace("](docs/", "](")
    for path, name in PAGES.items():
        text = text.replace(f"]({path}", f"]({name}")
    return text
