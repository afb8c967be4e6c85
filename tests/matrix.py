"""One wheel on several releases of Python and torch: `make matrix`, `make wheel-test` and `make oldest`.

Each row is a fresh virtual environment that gets the wheel, a torch and what the tests need beside it. The
tests of the package run where PATH holds no compiler, those of the CUDA engine where it does (they build
the CUDA emulator). None of them sees the source tree's package.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "python"
PROGRAMS = ("bash", "mount", "sh", "true", "umount", "unshare", "wc")  # what tests run besides Python
COMPILERS = ("c++", "cargo", "cc", "clang", "g++", "gcc", "rustc")
WORKERS = ("-n", "2", "--dist", "loadfile")  # of pytest
HERE = "{}.{}".format(*sys.version_info)


@dataclass(frozen=True)
class Row:
    """A release of Python and one of torch; None: the one that is installed beside this interpreter."""

    python: str
    torch: str | None


# The folders whose tests need no other library than torch and safetensors.
ROOMS = ("load", "storage", "module", "save", "convert", "cli", "dropin", "reliability", "project")
PACKAGE = sorted(path for room in ROOMS for path in TESTS.joinpath(room).glob("test_*.py"))
TORCH = [
    TESTS / room / f"test_{part}.py"
    for room, parts in {
        "load": ("ops", "ops_compiled", "load", "load_errors", "handle", "fixtures"),
        "storage": ("opens",),
        "module": ("assign", "assign_fit", "assign_ties", "in_place", "fast_path"),
        "save": ("save", "destinations"),
        "dropin": ("mixin",),
    }.items()
    for part in parts
]
ENGINE = [TESTS / "cuda" / "test_engine.py"]
INSTALLED = Row(HERE, None)
SUPPORTED = [INSTALLED, Row("3.10", "2.11.0"), Row("3.12", "2.13.0"), Row("3.13", version("torch"))]
# Rows, tests without a compiler, tests with one.
JOBS = {
    "installed": ([INSTALLED], PACKAGE, []),
    "oldest": ([Row(HERE, "2.11.0")], TORCH, []),
    "all": (SUPPORTED, PACKAGE, ENGINE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("job", choices=JOBS)
    arguments = parser.parse_args()
    table = ["| Python | torch | tests |\n| --- | --- | --- |\n"]
    failed = False
    rows, package, engine = JOBS[arguments.job]
    for program in ("faultio.py", "slowfs.py"):  # built here: rows have no compiler
        subprocess.run([sys.executable, TESTS / "support" / program], check=True)
    for row in rows:
        python = interpreter(row.python)
        outcome = f"not run: no Python {row.python} on this machine"
        if python:
            outcome, passed = run(python, row, arguments.wheel.resolve(), package, engine)
            failed |= not passed
        table.append(f"| {row.python} | {row.torch or 'installed'} | {outcome} |\n")
    print("".join(table))
    sys.exit(failed)


def interpreter(version: str) -> str | None:
    """A Python of this version: on PATH, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates = [f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in [sys.executable] * (version == HERE) + candidates:
        code = "import sys; print('{}.{}'.format(*sys.version_info))"
        found = shutil.which(candidate)
        done = found and subprocess.run([found, "-c", code], capture_output=True, text=True, check=False)
        if done and done.stdout.strip() == version:
            return found
    return None


def run(python: str, row: Row, wheel: Path, package: list[Path], engine: list[Path]) -> tuple[str, bool]:
    """What the tests said on this row, and whether they passed."""
    print(f"== Python {row.python}, torch {row.torch or 'installed'}", flush=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "target", prefix="matrix-") as folder:
        venv = Path(folder, "venv")
        subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
        install(venv, row, wheel)
        tools = Path(folder, "tools")
        tools.mkdir()
        for program in PROGRAMS:
            tools.joinpath(program).symlink_to(shutil.which(program) or program)
        without = f"{venv}/bin:{tools}"
        refuse_compilers(without)
        outcomes = [pytest(venv, without, package)]
        if engine:
            outcomes.append(pytest(venv, f"{venv}/bin:{os.environ['PATH']}", engine))
    return "; ".join(summary for summary, _ in outcomes), all(passed for _, passed in outcomes)


def install(venv: Path, row: Row, wheel: Path) -> None:
    pip = [sys.executable, "-m", "pip", f"--python={venv}/bin/python"]
    pip += ["install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    if row.torch is None:  # that of this environment, last on the path
        site = next(venv.glob("lib/python*/site-packages"))
        site.joinpath("installed_torch.pth").write_text(sysconfig.get_path("platlib") + "\n")
    else:
        subprocess.run([*pip, f"torch=={row.torch}"], check=True)
    # With pip, as tests fetch other releases to compare with.
    subprocess.run([*pip, "pip", "--group", f"{ROOT}/pyproject.toml:core", wheel], check=True)


def refuse_compilers(path: str) -> None:
    found = [tool for tool in COMPILERS if shutil.which(tool, path=path)]
    if found:
        raise SystemExit(f"{path} was to hold no compiler, but has {found}")


def pytest(venv: Path, path: str, tests: list[Path]) -> tuple[str, bool]:
    """pytest's last line, and whether it succeeded."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    check = f"import flashpack, sys; sys.exit(not flashpack.__file__.startswith({str(venv)!r}))"
    subprocess.run([f"{venv}/bin/python", "-c", check], env=environment, cwd=venv, check=True)
    command = [f"{venv}/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *WORKERS, *tests]
    done = subprocess.Popen(
        command, env={**environment, "PATH": path}, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    last = ""
    for line in done.stdout or ():
        sys.stdout.write(line)
        last = line.strip() or last
    return last.strip("= "), done.wait() == 0


if __name__ == "__main__":
    main()
