"""Builds the native libraries with cargo and packs them beside the Python files.

This one file is both the setuptools script and the build backend that pyproject.toml names. The
backend is setuptools' own with one change: it asks for torch, of which only the C++ headers are
needed, only when the environment that is installed into has none, so pip does not download it twice.
"""

import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.build_meta import *  # noqa: F403  (the hooks that stay as they are)
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
# cargo feature -> file
LIBRARIES = {
    "capi": "libflashpack.so",
    "remote": "libflashpack_remote.so",
    "torch": "libflashpack_torch.so",
}
SOURCES = ["Cargo.toml", "Cargo.lock", "build.rs", "src/**/*.rs", "cpp/**/*.*", "benches/*.rs"]
PORTABLE = os.environ.get("FLASHPACK_PORTABLE")  # x86_64 or aarch64: for every such machine with GLIBC
GLIBC = "2.28"  # as old as torch's own wheels allow


def get_requires_for_build_wheel(config_settings=None):  # noqa: ARG001
    return [] if torch_dir() else ["torch>={}.{}".format(*OLDEST_TORCH)]


get_requires_for_build_editable = get_requires_for_build_wheel


def torch_dir():
    """The folder of a torch package whose headers are new enough, or None.

    Under pip's build isolation torch cannot be imported, but `sysconfig` still names the
    environment that pip installs into.
    """
    spec = find_spec("torch")
    found = list(spec.submodule_search_locations or []) if spec else []
    installed = [sysconfig.get_path("platlib"), site.getusersitepackages()]
    named = os.environ.get("FLASHPACK_TORCH_DIR")
    candidates = [named] if named else found + [f"{path}/torch" for path in installed]
    return next((path for path in candidates if torch_version(path) >= OLDEST_TORCH), None)


def torch_version(folder):
    header = Path(folder, "include/torch/headeronly/version.h")
    text = header.read_text() if header.is_file() else ""
    return tuple(int(number) for number in re.findall(r"define TORCH_VERSION_M\w+ (\d+)", text))


def cargo_build(feature):
    """Builds the crate's library with one feature and returns its path.

    Each has its own target folder: cargo names all files alike, and builds in one folder wait for each other.
    """
    cargo = os.environ.get("CARGO") or shutil.which("cargo")
    if not cargo:
        sys.exit("flashpack is built with Rust: install it (https://rustup.rs) so that `cargo` is on PATH.")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"), feature)
    command = [cargo, "rustc", "--release", "--lib", "--crate-type", "cdylib", "--features", feature]
    command += ["--target-dir", str(target), "--message-format", "json-render-diagnostics"]
    environment = dict(os.environ)
    if feature == "torch" and torch_dir():
        environment["FLASHPACK_TORCH_DIR"] = torch_dir()
    if PORTABLE:
        make_portable(command, environment)
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"flashpack: cargo could not build {LIBRARIES[feature]}; its messages are above.")
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    built = [m["filenames"] for m in messages if m.get("target", {}).get("crate_types") == ["cdylib"]]
    return built[-1][0]


def make_portable(command, environment):
    """Makes a cargo command build for PORTABLE and link to GLIBC, whatever this machine is and has.

    zig brings the old glibc to link to. The C++ compiler and runtime stay gcc's: exceptions pass from
    this library to torch, so both must have the same ones.
    """
    triple = f"{PORTABLE}-unknown-linux-gnu"
    gcc = "g{}" if platform.machine() == PORTABLE else f"{PORTABLE}-linux-gnu-g{{}}"
    for tool in (gcc.format("++"), "cargo-zigbuild"):
        if not shutil.which(tool):
            sys.exit(f"flashpack: a portable build needs `{tool}` on PATH.")
    command[0] = "cargo-zigbuild"
    command += ["--target", f"{triple}.{GLIBC}", "--"]
    for library in ("libgcc_s.so.1", "libstdc++.so"):
        path = subprocess.check_output([gcc.format("++"), f"-print-file-name={library}"], text=True)
        command += ["-C", f"link-arg={path.strip()}"]
    compilers = {"CC": gcc.format("cc"), "CXX": gcc.format("++"), "CXXSTDLIB": ""}
    environment.update({f"{key}_{triple.replace('-', '_')}": value for key, value in compilers.items()})


class BuildLibraries(build_ext):
    """Puts the libraries into flashpack/_lib: of the source tree for an editable install."""

    def run(self):
        package = ROOT / "python" if self.inplace or self.editable_mode else Path(self.build_lib)
        folder = package / "flashpack" / "_lib"
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:  # the end of each build keeps one processor busy
            built = list(pool.map(cargo_build, LIBRARIES))
        for library, name in zip(built, LIBRARIES.values(), strict=True):
            # A running process may have the old file mapped: replace it, never write into it.
            new = Path(shutil.copy(library, folder / f"{name}.new"))
            new.replace(folder / name)

    def get_source_files(self):
        return [str(path.relative_to(ROOT)) for pattern in SOURCES for path in ROOT.glob(pattern)]


class Wheel(bdist_wheel):
    def get_tag(self):
        # torch's stable ABI: no Python inside.
        return "py3", "none", f"linux_{PORTABLE}" if PORTABLE else super().get_tag()[2]


class NativeDistribution(Distribution):
    def has_ext_modules(self):
        return True


def package_readme():
    """README.md for a package index, where no file of the repository is: without its charts and its links."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"<!-- charts -->.*?<!-- /charts -->\n\n", "", text, flags=re.DOTALL)
    return re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]+\)", r"\1", text)


if __name__ == "__main__":
    shutil.rmtree(ROOT / "target" / "python", ignore_errors=True)  # no stale modules in a wheel
    setup(
        version=re.search(r'^version = "(.+?)"', (ROOT / "Cargo.toml").read_text(), re.M)[1],
        long_description=package_readme(),
        long_description_content_type="text/markdown",
        distclass=NativeDistribution,
        cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
        options={"build": {"build_base": "target/python"}},
    )
