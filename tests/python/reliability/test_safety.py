"""What comes from a file is data: it is never run, and never says where anything is read or written."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import flashpack
import pytest
import torch
from flashpack.commands import convert_to_flashpack, revert_from_flashpack
from helpers import assert_same
from safetensors.torch import load_file, save_file

PACKAGE = Path(flashpack.__file__).parent
# Modules that run what they read, start programs, or reach the network past huggingface_hub.
FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "runpy", "code"),
    *("subprocess", "pty", "multiprocessing"),
    *("socket", "http.client", "urllib.request", "ftplib", "requests", "httpx", "aiohttp", "urllib3"),
}
# What ranks of one program send each other, which torch pickles anyway: never anything from a file.
BETWEEN_RANKS = ("_ranks/group.py", "pickle")
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen"}


def calls_and_imports() -> Iterator[tuple[str, ast.AST]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            yield f"{file.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}", node


def test_nothing_that_runs_code_or_opens_connections_is_imported() -> None:
    seen = set()
    for place, node in calls_and_imports():
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.append(node.module or "")
        for module in modules:
            parts = module.split(".")
            above = {".".join(parts[: length + 1]) for length in range(len(parts))}
            if (place.partition(":")[0], module) != BETWEEN_RANKS:
                assert not above & FORBIDDEN_MODULES, f"{place}: {module}"
            seen |= above
    assert {"torch", "json", "ctypes"} <= seen, "the sources were found"


def test_no_text_is_run() -> None:
    for place, node in calls_and_imports():
        if isinstance(node, ast.Call):
            function = node.func
            name = function.id if isinstance(function, ast.Name) else ""
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                name = function.attr if function.value.id in ("os", "builtins") else ""
            assert name not in FORBIDDEN_CALLS, place


def test_torch_loads_weights_only() -> None:
    found = 0
    for place, node in calls_and_imports():
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("weights_only") == "True", place
            found += 1
    assert found > 0


NAMES = [
    *("/etc/flashpack-was-here", "../escaped", "..", ".", "", "a/b/c", "nul\0byte", "~", "$HOME", "`id`"),
    *("C:\\windows", "file:///etc/passwd", "%2e%2e/escaped", "-rf", "con", "x" * 1000),
]


def everything_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_names_never_become_paths(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    tensors = {name: torch.tensor([float(number)]) for number, name in enumerate(NAMES)}
    metadata = dict.fromkeys(NAMES, "../escaped")
    flashpack.save_file(tensors, "model.flashpack", metadata)
    assert_same(flashpack.load_file("model.flashpack", eager=True), tensors)
    revert_from_flashpack("model.flashpack", f"back{suffix}")
    convert_to_flashpack(f"back{suffix}", "again.flashpack")
    assert_same(flashpack.load_file("again.flashpack"), tensors)
    flashpack.verify_file("again.flashpack")
    made = {"model.flashpack", f"back{suffix}", "again.flashpack"}
    assert everything_below(tmp_path) == {Path("inside"), *(Path("inside", name) for name in made)}
    assert not Path("/etc/flashpack-was-here").exists()


def test_metadata_of_safetensors_is_text(tmp_path: Path) -> None:
    text = "__import__('os').mkdir('ran')"
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {text: text, "format": text})
    convert_to_flashpack(tmp_path / "a.safetensors", tmp_path / "a.flashpack")
    footer = flashpack.get_flashpack_file_metadata(tmp_path / "a.flashpack")
    assert footer["metadata"] == {text: text, "format": text}
    revert_from_flashpack(tmp_path / "a.flashpack", tmp_path / "b.safetensors")
    assert_same(load_file(tmp_path / "b.safetensors"), {"a": torch.ones(1)})
    assert set(os.listdir(tmp_path)) == {"a.safetensors", "a.flashpack", "b.safetensors"}  # noqa: PTH208
