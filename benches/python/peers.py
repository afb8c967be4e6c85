"""The packages compared, each pinned and in a folder of its own; this one is the one that is installed."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = "flashpack"


@dataclass(frozen=True)
class Peer:
    """A distribution at one release; the first requirement pins it, others are what it imports."""

    module: str
    requirements: tuple[str, ...] = ()


_SAFETENSORS = "safetensors==0.8.0"
_UPSTREAM = "flashpack 0.4.5"
_HUB = ("huggingface_hub==2.4.0", "psutil==7.2.2", "pyyaml==6.0.3")

PEERS = {
    OURS: Peer("flashpack"),
    "none": Peer("sys"),  # the machine's own limits, cp
    "torch": Peer("torch"),
    _UPSTREAM: Peer("flashpack", ("flashpack==0.4.5",)),
    "safetensors 0.8.0": Peer("safetensors", (_SAFETENSORS,)),
    "safetensors 0.9.0rc1": Peer("safetensors", ("safetensors==0.9.0rc1",)),
    "accelerate 1.15.0": Peer("accelerate", ("accelerate==1.15.0", _SAFETENSORS, *_HUB)),
    "fastsafetensors 0.5.0": Peer("fastsafetensors", ("fastsafetensors==0.5.0",)),
    "runai-model-streamer 0.17.0": Peer(
        "runai_model_streamer", ("runai-model-streamer==0.17.0", "humanize==4.17.0")
    ),
    "runai-model-streamer 0.17.0, s3": Peer(
        "runai_model_streamer",
        (
            *("runai-model-streamer==0.17.0", "runai-model-streamer-s3==0.17.0", "humanize==4.17.0"),
            *("boto3==1.44.8", "botocore==1.44.8", "jmespath==1.1.0", "python-dateutil==2.9.0.post0"),
            *("s3transfer==0.19.3", "six==1.17.0", "urllib3==2.8.0"),
        ),
    ),
}


def environment(name: str) -> dict[str, str]:
    """The environment of a process that imports this peer. Raises RuntimeError if it cannot be installed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FLASHPACK_")}
    return {**clean, "PYTHONPATH": os.pathsep.join(_folders(name)), "HF_HUB_OFFLINE": "1"}


@functools.cache
def _folders(name: str) -> list[str]:
    peer = PEERS[name]
    if name == OURS:
        import flashpack

        return [str(Path(flashpack.__file__).parents[1])]
    if not peer.requirements:
        return []
    sys.path.append(str(ROOT / "tests/python/support"))
    import beside
    import pytest
    import upstream

    try:  # the tests' own copy of 0.4.5 serves here too
        if name == _UPSTREAM:
            return [str(upstream.install())]
        return [str(beside.install(f"peer-{peer.module}", peer.requirements))]
    except (AssertionError, pytest.skip.Exception) as error:
        raise RuntimeError(f"not installed: {str(error).strip().splitlines()[-1]}") from error


def version(name: str) -> str:
    """The release that this process imports. Raises RuntimeError unless it is the pinned one."""
    peer = PEERS[name]
    module = importlib.import_module(peer.module)
    if not peer.requirements:
        return getattr(module, "__version__", "")
    distribution, _, release = peer.requirements[0].partition("==")
    found = importlib.metadata.version(distribution)
    if found != release:
        raise RuntimeError(f"{module.__file__} is {found}, not {release}")
    return found
