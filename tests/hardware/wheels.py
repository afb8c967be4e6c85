"""A folder of wheels, unpacked: each package in a folder of its own, with no installer and no network."""

from __future__ import annotations

import platform
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from .child import CannotRunError

Package = tuple[str, str]  # name and version
# Those that are compared, and so never a dependency of each other.
COMPARED = ("flashpack", "safetensors", "fastsafetensors", "instanttensor")


class Wheels:
    """The wheels of a folder that are for this machine. Raises CannotRunError for one that is not there."""

    def __init__(self, folder: Path, unpacked: Path) -> None:
        self.folder = folder
        self._unpacked = unpacked
        here = [
            path for path in sorted(folder.glob("*.whl")) if path.stem.endswith(("any", platform.machine()))
        ]
        self._wheels = {package_of(path): path for path in here}

    def versions(self, name: str) -> list[str]:
        """The versions of a package, the last one last."""
        found = [version for other, version in self._wheels if other == name]
        return sorted(found, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])

    def folders(self, name: str, version: str) -> list[Path]:
        """Where to import a package from, and the others that the folder has."""
        if (name, version) not in self._wheels:
            raise CannotRunError(f"no wheel of {name} {version} in {self.folder}")
        others = [package for package in self._wheels if package[0] not in COMPARED]
        return [self._folder(package) for package in [(name, version), *others]]

    def _folder(self, package: Package) -> Path:
        folder = self._unpacked / "-".join(package)
        if not folder.exists():
            with zipfile.ZipFile(self._wheels[package]) as wheel:
                wheel.extractall(folder)
        return folder


def package_of(wheel: Path) -> Package:
    name, version = wheel.name.split("-")[:2]
    return name.lower().replace("_", "-"), version


def only(found: Sequence[str], what: str, folder: Path) -> str:
    """The one version that there is."""
    if len(found) != 1:
        raise CannotRunError(
            f"{folder} has {len(found)} wheels of {what}: {', '.join(found) or 'one is needed'}"
        )
    return found[0]
