"""What no message, report or repr may hold: keys, tokens, passwords, queries of URLs."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
from click.testing import CliRunner
from faultstore import SECRET, Store
from flashpack import cli
from flashpack.integrations._request import LoadRequest
from flashpack.integrations.distributed_checkpoint import FlashPackStorageReader
from helpers import FIXTURES
from patience import within
from remote_model import URL, module

from flashpack._load.options import LoadOptions  # isort: skip

WORD = "hidden-word"  # in the query of a URL
TOKEN = "hf_hidden_token"
SECRETS = (SECRET, WORD, TOKEN, "AWS4-HMAC", "X-Amz-Signature")


def said_by(call: Callable[[], Any]) -> str:
    """All that a call prints, and its error."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            print(repr(within(call)))
        except Exception as error:  # noqa: BLE001 (all of them are looked at)
            causes: list[BaseException | None] = [error, error.__cause__, error.__context__]
            print(*map(repr, causes), *map(str, causes))
    return out.getvalue()


def command(*arguments: str) -> Callable[[str], Any]:
    """A command line, in which URL and OUT stand for the URL and for a new file."""

    def invoke(url: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            places = {"URL": url, "OUT": f"{folder}/out.safetensors"}
            result = CliRunner().invoke(cli.main, [places.get(each, each) for each in arguments])
        return f"{result.output}{result.stderr}{result.exception!r}"

    return invoke


CALLS: dict[str, Callable[[str], Any]] = {
    "open": lambda url: repr(flashpack.open(url)),
    "load": flashpack.load_file,
    "unknown name": lambda url: flashpack.load_file(url, names=["no such name"]),
    "last_load": lambda url: (flashpack.load_file(url), flashpack.last_load())[1],
    "explain": lambda url: flashpack.explain(url),
    "verify": lambda url: flashpack.verify_file(url),
    "assign": lambda url: flashpack.assign_from_file(module(), url),
    "metadata": lambda url: flashpack.get_flashpack_file_metadata(url),
    "checkpoint of ranks": lambda url: FlashPackStorageReader(url),
    "flashpack ls": command("ls", "URL"),
    "flashpack metadata": command("metadata", "URL"),
    "flashpack verify": command("verify", "URL"),
    "flashpack explain": command("explain", "URL"),
    "flashpack diff": command("diff", "-v", "URL", "s3://bucket/shards/model.flashpack"),
    "flashpack diff, other way": command("diff", "-v", str(FIXTURES / "small.flashpack"), "URL"),
    "flashpack revert": command("revert", "-v", "URL", "OUT"),
    "flashpack extract": command("extract", "URL", "OUT", "t0"),
    "flashpack rename": command("rename", "URL", "a", "b"),
}
FAULTS: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "403": [{"kind": "expire", "times": 0}],
    "404": [{"kind": "status", "status": 404, "times": 0}],
    "damage": [{"kind": "flip", "times": 0, "at": 5_000_000}],
    "later 403": [{"kind": "expire", "times": 0, "first": 2}],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_nothing_secret_is_said(model: Store, call: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    model.plan(*FAULTS[fault])
    web = model.url("bucket/folder/model.flashpack").replace("http://", f"http://user:{WORD}@")
    for url in (URL, f"{web}?X-Amz-Signature={WORD}"):
        said = said_by(lambda url=url: CALLS[call](url))
        assert [secret for secret in SECRETS if secret in said] == []


def test_messages_of_models_have_no_query() -> None:
    path = f"az://container/model.flashpack?sig={WORD}"
    request = LoadRequest("az://container", Path(), path, None, None, None, False, LoadOptions(), {})
    assert request.shown == "az://container/model.flashpack"
