"""The Python tests with both libraries under AddressSanitizer, the C++ under UBSan, too: `make asan`.

gcc instruments the C++ and LLVM the Rust, for one runtime: gcc's, preloaded into every process, so that it
knows torch's memory and Python's as well. Rust's standard library is not instrumented, but what it allocates
is known, and its assertions on unsafe calls are on. Before the tests, planted mistakes have to be reported.
A report of any process is a failure, whatever its test makes of it. Takes 20 minutes.

    python tests/asan.py                          # TESTS
    python tests/asan.py tests/python/load/test_ops.py # these, with any options of pytest
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matrix

ROOT = Path(__file__).resolve().parents[1]
PYTHON_TESTS = ROOT / "tests" / "python"
WORK = ROOT / "target" / "asan"
PACKAGE = WORK / "python" / "flashpack"
REPORTS = WORK / "reports"
TARGET = "x86_64-unknown-linux-gnu"  # of both sanitizers and of gcc's runtime for them

ENGINE_PARTS = ("engine", "engine_faults", "engine_forms", "engine_slices", "saving")
ENGINE = [PYTHON_TESTS / "cuda" / f"test_{name}.py" for name in ENGINE_PARTS]
TESTS = [*matrix.PACKAGE, *ENGINE, PYTHON_TESTS / "ranks"]

RUST_FLAGS = ["-Zsanitizer=address"]
CPP_FLAGS = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g1"]
BUILD = {
    "RUSTC_BOOTSTRAP": "1",  # the compiler's sanitizers are unstable, but there in the stable one
    "RUSTFLAGS": " ".join(RUST_FLAGS),
    "CFLAGS": " ".join(CPP_FLAGS),
    "CXXFLAGS": " ".join(CPP_FLAGS),
    "CARGO_BUILD_TARGET": TARGET,  # named, so that build scripts are not instrumented
    "CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS": "true",  # the standard library's of unsafe calls among them
    "CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS": "true",
    "CARGO_PROFILE_RELEASE_DEBUG": "line-tables-only",
    "CARGO_PROFILE_RELEASE_STRIP": "none",
}
OPTIONS = {
    "detect_leaks": 0,  # Python leaks by design
    "handle_sigbus": 0,  # a test wants a process to die of it
    "allocator_may_return_null": 1,  # as without: tests ask for more than there is
    "detect_stack_use_after_return": 1,
    "strict_string_checks": 1,
    "check_initialization_order": 1,
}


def main(arguments: list[str]) -> int:
    build()
    shutil.rmtree(REPORTS, ignore_errors=True)
    check_that_it_bites()
    refuse_other_libraries()
    REPORTS.mkdir()
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or map(str, TESTS))]
    failed = run(pytest, reports=REPORTS / "report").returncode
    reports = sorted(REPORTS.iterdir())
    for report in reports:
        print(f"== {report.relative_to(ROOT)}\n{report.read_text(errors='replace')}")
    print(f"{len(reports)} reports of the sanitizers")
    return failed or bool(reports)


def build() -> None:
    """A copy of the package with instrumented libraries, under WORK."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__", "_lib")
    shutil.copytree(ROOT / "python" / "flashpack", PACKAGE, ignore=unwanted)
    for feature in ("capi", "remote", "torch"):
        code = "import setup; print(setup.LIBRARIES[sys.argv[1]], setup.cargo_build(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {code}", feature],
            cwd=ROOT, env={**os.environ, **BUILD, "CARGO_TARGET_DIR": str(WORK)}, stdout=subprocess.PIPE,
            text=True, check=True,
        )  # fmt: skip
        name, library = done.stdout.split()
        (PACKAGE / "_lib").mkdir(exist_ok=True)
        shutil.copy(library, PACKAGE / "_lib" / name)


def runtime() -> str:
    """What has to be preloaded: AddressSanitizer first, and the C++ library whose exceptions it looks at."""
    names = ["libasan.so", "libubsan.so", "libstdc++.so"]
    ask = "-print-file-name="
    told = [subprocess.check_output(["gcc", ask + name], text=True) for name in names]
    found = [Path(path.strip()) for path in told]
    if missing := [str(path) for path in found if not path.is_absolute()]:
        sys.exit(f"gcc has no {' and no '.join(missing)}")
    return " ".join(str(path.resolve()) for path in found)


def run(command: list[str], reports: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python with the runtime. Reports go to files that begin so; without `reports`, all is captured."""
    log = f":log_path={reports}" if reports else ""
    environment = {
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": ":".join(f"{name}={value}" for name, value in OPTIONS.items()) + log,
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1{log}",
        "PYTHONMALLOC": "malloc",  # each object of Python's has its own memory
        "PYTHONPATH": str(PACKAGE.parent),
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        capture_output=reports is None,
    )


STORE = """
import ctypes, sys, torch
library = ctypes.CDLL(sys.argv[1])
def store(address, at):
    library.store(ctypes.c_void_p(address), ctypes.c_long(at))
tensor = torch.zeros(64, dtype=torch.uint8)
address = tensor.data_ptr()
store(address, 63)
"""
# What Python does after STORE, and what must be said of it.
RIGHT = "assert tensor[63] == 1"
WRONG = {
    "store(address, 64)": "AddressSanitizer: heap-buffer-overflow",
    "store(address, -1)": "AddressSanitizer: heap-buffer-overflow",
    "del tensor; store(address, 0)": "AddressSanitizer: heap-use-after-free",
}
WRONG_IN_CPP = {"library.add(2**31 - 1, 1)": "runtime error: signed integer overflow"}


def check_that_it_bites() -> None:
    """Exits unless mistakes in either language, with memory of torch's, are reported."""
    sources = ROOT / "tests" / "asan"
    cpp, rust = WORK / "mistakes_cpp.so", WORK / "mistakes_rs.so"
    shared = ["g++", "-O2", "-shared", "-fPIC", *CPP_FLAGS, "-o", cpp, sources / "mistakes.cpp"]
    subprocess.run(shared, check=True)
    cdylib = ["rustc", "-O", "--edition=2024", "--crate-type=cdylib", f"--target={TARGET}", *RUST_FLAGS]
    subprocess.run([*cdylib, "-o", rust, sources / "mistakes.rs"], env={**os.environ, **BUILD}, check=True)
    count = 0
    for library, mistakes in ((cpp, {**WRONG, **WRONG_IN_CPP}), (rust, WRONG)):
        for code, expected in {RIGHT: None, **mistakes}.items():
            done = run(["-c", STORE + code, str(library)])
            told = re.search("AddressSanitizer: [a-z-]+|runtime error: [a-z ]+", done.stderr)
            if (told and told[0]) != expected or bool(done.returncode) != bool(expected):
                sys.exit(f"{library.name}: {code}: expected {expected}, got {done.returncode}\n{done.stderr}")
            count += bool(expected)
    print(f"{count} planted mistakes reported", flush=True)


def refuse_other_libraries() -> None:
    """Exits unless the tests will use the libraries that were built here, and those are instrumented."""
    code = "from flashpack._core import native, ops; print(native.LIBRARY_FOLDER, ops.library_path())"
    folder, library = run(["-c", code]).stdout.split()
    if Path(folder) != PACKAGE / "_lib" or Path(library).parent != PACKAGE / "_lib":
        sys.exit(f"the tests would use {folder} and {library}, not what is in {PACKAGE}")
    for name, marks in {
        "libflashpack.so": [b"__asan_report_store8"],
        "libflashpack_remote.so": [b"__asan_report_store8"],
        "libflashpack_torch.so": [b"__asan_report_store8", b"__ubsan_handle_pointer_overflow"],
    }.items():
        if missing := [mark for mark in marks if mark not in (PACKAGE / "_lib" / name).read_bytes()]:
            sys.exit(f"{name} is not instrumented: it has no {missing}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
