#!/usr/bin/env python3
"""Builds the emulator for the CUDA build of torch that this interpreter has.

    PYTHON tests/fakecuda/build.py [--out FOLDER]

FOLDER (default: target/fakecuda/torch-VERSION of the repository) gets libcuda.so.1, libcudart.so.N,
libcupti.so.N and libnvidia-ml.so.1; the path of the library to preload is printed. Needs g++ and binutils;
the CUDA headers come from the wheels that torch depends on, and nothing is downloaded. An emulator that is
up to date is left alone, and of one that is not only the changed sources are compiled.

The entry points that src/ does not define are generated here as stubs that fail loudly with "not supported":
every function that the CUDA headers declare, and every one that a library of torch imports from libcudart.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

HERE = Path(__file__).resolve().parent
SOURCES = sorted((HERE / "src").glob("*.cpp"))
HEADERS = sorted([*(HERE / "src").glob("*.h"), *(HERE / "include").glob("*.h")])
OTHER = [HERE / "src" / "nvml.c", Path(__file__).resolve()]

# Plain names that cuda.h does not alias but that cuGetProcAddress accepts.
PLAIN_NAMES = [
    *("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync"),
    *("cuMemcpyHtoD", "cuMemcpyDtoH", "cuMemcpyDtoD", "cuMemsetD8", "cuMemsetD32"),
    "cuStreamWriteValue32",  # never called, but torch wants to find it
]


class BuildError(RuntimeError):
    """The emulator cannot be built here; the message says what is missing or what the compiler said."""


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(" ".join(map(str, command)) + "\n" + done.stdout + done.stderr)
    return done.stdout


def imports(library: Path, pattern: str) -> list[tuple[str, str]]:
    """What a library wants from others: (symbol, library) for each match of the pattern's two groups."""
    try:
        return re.findall(pattern, run("nm", "-D", "--undefined-only", library))
    except BuildError:  # not an ELF file
        return []


def definitions(object_file: Path) -> set[str]:
    return set(re.findall(r" T (\w+)$", run("nm", "--defined-only", object_file), re.MULTILINE))


def in_parallel(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


class Torch:
    """An installed CUDA build of torch: what it was compiled against and what it imports."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("torch")
        if not spec or not spec.origin:
            raise BuildError(f"{sys.executable} has no torch: install a CUDA build of it")
        self.version = importlib.metadata.version("torch")
        self.site = Path(spec.origin).parent.parent

    def cuda_include(self) -> Path:
        for header in sorted(self.site.glob("nvidia/*/include/cuda.h")):
            return header.parent
        raise BuildError(
            f"torch {self.version} in {self.site} came without CUDA headers (nvidia/*/include/cuda.h): "
            "the emulator needs a CUDA build of torch, not a CPU-only one"
        )

    def include_flags(self) -> list[str]:
        flags = [f"-I{HERE / 'include'}", f"-I{HERE / 'src'}", f"-I{self.cuda_include()}"]
        # cuda_runtime_api.h needs crt/host_defines.h, which has a wheel of its own (nvidia-cuda-crt); triton,
        # which torch depends on, brings a copy.
        for triton in self.site.glob("triton/backends/nvidia/include"):
            flags += ["-idirafter", str(triton)]
        return flags

    def libraries(self) -> list[Path]:
        return sorted([*self.site.glob("torch/lib/*.so*"), *self.site.glob("nvidia/*/lib/*.so*")])

    def imports_of(self, libraries: Iterable[Path], pattern: str) -> list[tuple[str, str]]:
        found = in_parallel(lambda library: imports(library, pattern), libraries)
        return [match for matches in found for match in matches]

    def runtime_imports(self) -> tuple[str, set[str]]:
        """The soname of the runtime library and all that anything imports from it."""
        pattern = r"U ((?:__)?cuda\w+)@(libcudart\.so\.\d+)"
        found = self.imports_of(self.libraries(), pattern)
        if not found:
            raise BuildError(f"no library of torch {self.version} imports libcudart: is it a CUDA build?")
        return found[0][1], {symbol for symbol, _ in found}

    def cupti_imports(self) -> tuple[str, set[str]] | None:
        pattern = r"U (cupti\w+)@(libcupti\.so\.\d+)"
        found = self.imports_of(self.site.glob("torch/lib/*.so*"), pattern)
        return (found[0][1], {symbol for symbol, _ in found}) if found else None


class Build:
    """The emulator in one folder."""

    def __init__(self, torch: Torch, out: Path) -> None:
        for tool, package in (("g++", "g++"), ("nm", "binutils")):
            if not shutil.which(tool):
                raise BuildError(f"{tool} is not installed (package {package}); the emulator needs it")
        self.torch, self.out = torch, out
        self.objects = out / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        include = torch.include_flags()
        self.include = include
        self.flags = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", *include]

    # --- Compiling. ------------------------------------------------------------------------------

    def compile(self, source: Path) -> Path:
        """The object of a source; made before, if neither it nor a header nor a flag has changed."""
        digest = hashlib.sha256(" ".join(self.flags).encode())
        for part in (source, *HEADERS):
            digest.update(part.read_bytes())
        target = self.objects / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        if not target.exists():
            for old in self.objects.glob(f"{source.stem}-{'?' * 16}.o"):
                old.unlink()
            unfinished = target.with_suffix(".tmp")
            run("g++", *self.flags, "-c", source, "-o", unfinished)
            unfinished.rename(target)
        return target

    def generated(self, name: str, lines: Iterable[str]) -> Path:
        path = self.objects / name
        path.write_text("\n".join(lines) + "\n")
        return path

    def declared(self, header: str, kind: str, prefix: str) -> set[str]:
        """The functions of a CUDA header, by what they return."""
        text = run("g++", "-E", "-P", *self.include, "-x", "c++", "-include", header, "/dev/null")
        return set(re.findall(rf"{kind}\s+({prefix}\w+)\s*\(", text))

    # --- libcuda. --------------------------------------------------------------------------------

    def driver(self, objects: list[Path]) -> None:
        text = (self.torch.cuda_include() / "cuda.h").read_text()
        renamed = dict(re.findall(r"^#\s*define\s+(cu[A-Z]\w+)\s+(cu[A-Z]\w+?_v\d)\s*$", text, re.MULTILINE))
        have = set().union(*in_parallel(definitions, objects))
        missing = (self.declared("cuda.h", "CUresult", "cu") | set(renamed.values())) - have
        aliases = {name: f"{name}_v2" for name in PLAIN_NAMES} | renamed
        stubs = self.compile(self.driver_stubs(sorted(missing), aliases))
        library = self.out / "libcuda.so.1"
        link = ["-Wl,-soname,libcuda.so.1", "-Wl,-z,defs", "-static-libgcc", "-lpthread", "-ldl"]
        run("g++", "-shared", "-o", library, *objects, stubs, *link)
        plain = self.out / "libcuda.so"  # for code that opens it without the version
        if not plain.is_symlink():
            plain.symlink_to(library.name)

    def driver_stubs(self, names: list[str], aliases: dict[str, str]) -> Path:
        stubs = [f'extern "C" FK_API int {name}() {{ return fk::stub("{name}"); }}' for name in names]
        pairs = "".join(
            f'    {{"{plain}", "{versioned}"}},\n' for plain, versioned in sorted(aliases.items())
        )
        table = [
            "extern const char* const fakecuda_aliases[][2];",
            f"const char* const fakecuda_aliases[][2] = {{\n{pairs}    {{0, 0}}}};",
        ]
        return self.generated("driver_stubs.cpp", ['#include "faults.h"', *stubs, *table])

    # --- libcudart. ------------------------------------------------------------------------------

    def runtime(self, objects: list[Path], companions: list[str]) -> None:
        soname, imported = self.torch.runtime_imports()
        wanted = imported | self.declared("cuda_runtime_api.h", "cudaError_t", "cuda")
        missing = wanted - set().union(*map(definitions, objects))
        stubs = self.compile(self.runtime_stubs(sorted(missing)))
        version = self.generated("runtime.map", [f"{soname} {{ global: *; }};"])
        link = [f"-Wl,-soname,{soname}", f"-Wl,--version-script={version}", "-Wl,-rpath,$ORIGIN", "-lpthread"]
        needed = ["-Wl,--no-as-needed", *(f"-l:{name}" for name in ["libcuda.so.1", *companions])]
        run("g++", "-shared", "-o", self.out / soname, *objects, stubs, *link, f"-L{self.out}", *needed)

    def runtime_stubs(self, names: list[str]) -> Path:
        head = ['#include "common.h"', 'extern "C" int fakecuda_runtime_stub(const char*);']
        stub = 'extern "C" FK_API int {0}() {{ return fakecuda_runtime_stub("{0}"); }}'
        return self.generated("runtime_stubs.cpp", [*head, *map(stub.format, names)])

    # --- Libraries that torch loads as well. -----------------------------------------------------

    def small_library(self, name: str, source: Path, version: str = "") -> str:
        script = self.generated(f"{name}.map", [f"{version} {{ global: *; }};"])
        link = [f"-Wl,-soname,{name}", f"-Wl,--version-script={script}"]
        run("gcc", "-shared", "-fPIC", "-O1", source, "-o", self.out / name, *link)
        return name

    def cupti(self) -> list[str]:
        """The profiler's library: every call fails, so torch.profiler goes without it."""
        found = self.torch.cupti_imports()
        if not found:
            return []
        soname, names = found
        lines = [
            'int cuptiGetResultString(int r, const char** s) { *s = "no CUPTI in fakecuda"; return 0; }',
            "int cuptiGetVersion(unsigned* v) { *v = 130000; return 0; }",
        ]
        silent = sorted(names - {"cuptiGetResultString", "cuptiGetVersion"})
        lines += [f"int {name}(void) {{ return 15; }}" for name in silent]
        return [self.small_library(soname, self.generated("cupti.c", lines), soname)]

    def all(self) -> None:
        compiled = dict(zip(SOURCES, in_parallel(self.compile, SOURCES), strict=True))
        runtime = [o for source, o in compiled.items() if source.stem.startswith("runtime_")]
        self.driver([o for o in compiled.values() if o not in runtime])
        companions = [*self.cupti(), self.small_library("libnvidia-ml.so.1", HERE / "src" / "nvml.c")]
        self.runtime(runtime, companions)


def fingerprint(torch: Torch) -> str:
    """Changes with everything that the result depends on."""
    digest = hashlib.sha256(f"{torch.version} {torch.cuda_include().parent.name}".encode())
    for part in (*SOURCES, *HEADERS, *OTHER):
        digest.update(part.name.encode() + part.read_bytes())
    return digest.hexdigest()


def build(out: Path | None = None) -> Path:
    """Brings the emulator up to date; returns the library to preload, libcudart.so.N."""
    torch = Torch()
    out = out or HERE.parents[1] / "target" / "fakecuda" / f"torch-{torch.version}"
    out.mkdir(parents=True, exist_ok=True)
    stamp, wanted = out / "stamp", fingerprint(torch)
    with (out / "lock").open("w") as lock:  # two test runs may start at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            Build(torch, out).all()
            stamp.write_text(wanted)
    return next(out.glob("libcudart.so.*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="where the libraries go")
    try:
        print(build(parser.parse_args().out))
    except BuildError as error:
        sys.exit(f"fakecuda: {error}")


if __name__ == "__main__":
    main()
