"""Code written for flashpack 0.4.5 finds the same names, signatures and messages here."""

from __future__ import annotations

import importlib
import inspect
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
import upstream
from flashpack import FlashPackMixin, deserialization
from helpers import assert_same, noise, read_footer
from processes import python, succeed
from torch import nn

REQUIRED = "required"
_IGNORE = {"ignore_names": None, "ignore_prefixes": None, "ignore_suffixes": None}
_LOAD = {
    "strict": None,
    "strict_params": True,
    "strict_buffers": False,
    "keep_flash_ref_on_model": False,
    **_IGNORE,
    "num_streams": 4,
    "chunk_bytes": 4194304,
    "use_distributed_loading": False,
    "distributed_sharded": False,
    "distributed_shard_strategy": None,
    "rank": None,
    "local_rank": None,
    "world_size": None,
    "coerce_dtype": False,
}
_PACK = {"name_order": None, "align_bytes": 128, "silent": True, "num_workers": 32}
_READ = {"chunk_bytes": 4194304, "num_streams": 4, "silent": True, "metadata": None}

# Parameters of 0.4.5's functions, in its order, with their defaults.
SIGNATURES: dict[str, dict[str, Any]] = {
    "flashpack.pack_to_file": {
        "state_dict_or_model": REQUIRED,
        "destination_path": REQUIRED,
        "target_dtype": REQUIRED,
        **_PACK,
    },
    "flashpack.assign_from_file": {
        "model": REQUIRED,
        "path": REQUIRED,
        "device": None,
        "strict": None,
        "strict_params": True,
        "strict_buffers": False,
        "keep_flash_ref_on_model": False,
        "silent": True,
        "num_streams": 4,
        "chunk_bytes": 4194304,
        **_LOAD,
    },
    "flashpack.is_flashpack_file": {"path": REQUIRED},
    "flashpack.get_flashpack_file_metadata": {"path": REQUIRED},
    "flashpack.read_flashpack_file_distributed": {
        "path": REQUIRED,
        "device": "cuda",
        "src": 0,
        **_READ,
        "sharded": False,
        "shard_strategy": None,
    },
    "flashpack.patch_integrations": {},
    "flashpack.FlashPackMixin.from_flashpack": {
        "path": REQUIRED,
        "device": None,
        "silent": False,
        **_LOAD,
        "init_fn": None,
    },
    "flashpack.FlashPackMixin.save_flashpack": {
        "self": REQUIRED,
        "destination_path": REQUIRED,
        "target_dtype": None,
        **_PACK,
        "silent": False,
    },
    "flashpack.deserialization.read_flashpack_file": {"path": REQUIRED, "device": "cpu", **_READ},
    "flashpack.deserialization.iterate_from_flash_tensor": {
        "flash_tensor": REQUIRED,
        "metadata": REQUIRED,
        **_IGNORE,
    },
    "flashpack.deserialization.revert_from_file": {"path": REQUIRED, "silent": True},
    "flashpack.commands.convert_to_flashpack": {
        "model_or_state_dict_or_path_or_repo_id": REQUIRED,
        "destination_path": None,
        "dtype": None,
        **_IGNORE,
        "use_transformers": False,
        "use_diffusers": False,
        "silent": True,
    },
    "flashpack.commands.revert_from_flashpack": {"path": REQUIRED, "destination_path": None, "silent": True},
}

READ_SIGNATURES = """
import importlib, inspect, json, sys

def find(name):
    owner, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(owner), attribute)
    except ImportError:
        return getattr(find(owner), attribute)

def defaults(function):
    return [
        [p.name, "required" if p.default is p.empty else p.default]
        for p in inspect.signature(function).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]

print(json.dumps([defaults(find(name)) for name in sys.argv[1:]]))
"""


def test_the_table_of_signatures_is_that_of_the_release() -> None:
    seen = json.loads(upstream.run(upstream.install(), READ_SIGNATURES, *SIGNATURES).splitlines()[-1])
    for (name, expected), actual in zip(SIGNATURES.items(), seen, strict=True):
        assert list(map(tuple, actual)) == list(expected.items()), name


def find(name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(owner), attribute)
    except ImportError:
        return getattr(find(owner), attribute)


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", [name for name in SIGNATURES if not name.endswith("from_flashpack")])
def test_signatures_are_a_superset(name: str) -> None:
    ours, theirs = parameters_of(find(name)), SIGNATURES[name]
    assert list(ours)[: len(theirs)] == list(theirs)
    for parameter, default in theirs.items():
        assert ours[parameter].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if default is not REQUIRED:
            assert ours[parameter].default == default, parameter
    for parameter in list(ours.values())[len(theirs) :]:
        assert parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


def test_pack_to_file_needs_no_target_dtype() -> None:
    assert parameters_of(flashpack.pack_to_file)["target_dtype"].default is None


def test_convert_takes_any_hub_option() -> None:
    last = list(parameters_of(flashpack.commands.convert_to_flashpack).values())[-1]
    assert last.kind is inspect.Parameter.VAR_KEYWORD


class Recorder(nn.Module, FlashPackMixin):
    """Remembers what its initialiser was given."""

    def __init__(self, width: int = 3, *, bias: bool = True, rank: int | None = None) -> None:
        super().__init__()
        self.given = {"width": width, "bias": bias, "rank": rank}
        self.linear = nn.Linear(width, 2, bias=bias)


@pytest.mark.parametrize("option", _LOAD)
def test_from_flashpack_takes_every_load_option(path: Path, option: str) -> None:
    Recorder(4).save_flashpack(path, silent=True)
    loaded = Recorder.from_flashpack(path, 4, silent=True, **{option: _LOAD[option]})
    assert loaded.given == {"width": 4, "bias": True, "rank": None}


def test_from_flashpack_checks_its_load_options(path: Path) -> None:
    Recorder(4).save_flashpack(path, silent=True)
    with pytest.raises(ValueError, match="num_streams"):
        Recorder.from_flashpack(path, 4, num_streams=0)


def test_from_flashpack_signature() -> None:
    ours = parameters_of(FlashPackMixin.from_flashpack)
    theirs = SIGNATURES["flashpack.FlashPackMixin.from_flashpack"]
    assert list(ours)[:2] == ["path", "args"]
    assert ours["args"].kind is inspect.Parameter.VAR_POSITIONAL
    assert ours["kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    for option in ("device", "silent", "init_fn"):
        assert (ours[option].kind, ours[option].default) == (inspect.Parameter.KEYWORD_ONLY, theirs[option])


ATTRIBUTES = {
    "flashpack": [
        *("pack_to_file", "assign_from_file", "is_flashpack_file", "get_flashpack_file_metadata"),
        *("read_flashpack_file_distributed", "FlashPackMixin", "patch_integrations", "__version__"),
        *("version", "__version_tuple__", "version_tuple"),
        *("load_file", "save_file", "open", "verify_file", "serialization", "mixin"),
    ],
    "flashpack.serialization": ["pack_to_file"],
    "flashpack.mixin": ["FlashPackMixin", "assign_from_file"],
    "flashpack.deserialization": [
        *("read_flashpack_file", "iterate_from_flash_tensor", "revert_from_file", "assign_from_file"),
        *("is_flashpack_file", "get_flashpack_file_metadata", "read_flashpack_file_distributed"),
    ],
    "flashpack.commands": ["convert_to_flashpack", "revert_from_flashpack"],
    "flashpack.constants": ["MAGIC", "FILE_FORMAT_V3", "FILE_FORMAT_V4", "U64LE", "DEFAULT_ALIGN_BYTES"],
    "flashpack.__main__": ["main"],
    "flashpack.integrations": ["patch_integrations"],
    "flashpack.utils": [
        *("string_to_dtype", "dtype_to_string", "get_module_and_attribute", "human_num_elements"),
        *("human_duration", "timer", "is_ignored_tensor_name", "filter_state_dict"),
        *("diffusers_is_available", "transformers_is_available"),
    ],
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in ATTRIBUTES.items() for name in names]
)
def test_names(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    assert value is not None
    assert getattr(importlib.import_module(module), name) is value


def test_the_same_function_under_each_of_its_names() -> None:
    assert flashpack.pack_to_file is flashpack.serialization.pack_to_file
    assert flashpack.assign_from_file is flashpack.mixin.assign_from_file
    assert flashpack.assign_from_file is deserialization.assign_from_file
    assert flashpack.FlashPackMixin is flashpack.mixin.FlashPackMixin


def test_constants() -> None:
    constants = flashpack.constants
    assert constants.MAGIC == b"FLASHPK\0"
    assert (constants.FILE_FORMAT_V3, constants.FILE_FORMAT_V4) == ("flashpack_v3", "flashpack_v4")
    assert isinstance(constants.U64LE, struct.Struct)
    assert constants.U64LE.pack(258) == b"\2\1" + bytes(6)
    assert constants.DEFAULT_ALIGN_BYTES == 128


def test_public_names_are_listed() -> None:
    assert set(flashpack.__all__) <= set(dir(flashpack))
    assert "open" not in flashpack.__all__
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        flashpack.frobnicate  # noqa: B018
    assert isinstance(flashpack.__version__, str)


def test_a_star_import_leaves_open_alone() -> None:
    succeed(
        python(
            "-c", "from flashpack import *; assert open is __builtins__.open; pack_to_file, FlashPackMixin"
        )
    )


def test_import_is_light() -> None:
    heavy = "{'torch', 'numpy', 'click', 'tqdm', 'safetensors', 'transformers', 'diffusers'}"
    code = f"import sys, flashpack; assert not {heavy} & set(sys.modules), sys.modules.keys()"
    succeed(python("-c", code))


# As diffusers calls it, right after `import flashpack` and nothing else.
AS_DIFFUSERS_DOES = """
import sys
import flashpack
import torch

model = torch.nn.Linear(3, 2)
flashpack.serialization.pack_to_file(
    state_dict_or_model=model.state_dict(), destination_path=sys.argv[1], target_dtype=model.weight.dtype
)
with torch.device("meta"):
    other = torch.nn.Linear(3, 2)
options = {"silent": True, "num_streams": 2, "chunk_bytes": 1 << 20, "strict": True}
flashpack.mixin.assign_from_file(model=other, path=sys.argv[1], device=torch.device("cpu"), **options)
assert torch.equal(other.weight, model.weight) and torch.equal(other.bias, model.bias)
"""


def test_attributes_bound_by_the_import_alone(path: Path) -> None:
    succeed(python("-c", AS_DIFFUSERS_DOES, path))


def test_positional_arguments_as_in_0_4_5(path: Path) -> None:
    model = nn.Linear(3, 2)
    flashpack.pack_to_file(model, path, torch.float16, ["bias", "weight"], 64, True, 4)
    assert list(flashpack.load_file(path)) == ["bias", "weight"]
    assert read_footer(path)["align_bytes"] == 64
    other = nn.Linear(3, 2)
    flashpack.assign_from_file(
        other, path, "cpu", True, True, True, False, True, 4, 1 << 20, None, None, None, False, False, None
    )
    assert_same(other.state_dict(), {name: t.half() for name, t in model.state_dict().items()})


def test_a_model_class_as_in_the_readme(path: Path) -> None:
    class MyModule(nn.Module, FlashPackMixin):
        def __init__(self, some_arg: int = 4) -> None:
            super().__init__()
            self.linear = nn.Linear(some_arg, some_arg)

    module = MyModule(some_arg=5)
    module.save_flashpack(path)
    for loaded in (module.from_flashpack(path, some_arg=5), MyModule.from_flashpack(path, some_arg=5)):
        assert loaded is not module
        assert not loaded.training
        assert_same(loaded.state_dict(), module.state_dict())


def test_storage(path: Path) -> None:
    given = {"a": noise(torch.float32, (5,)), "b": noise(torch.int8, (7,))}
    flashpack.pack_to_file(given, path, align_bytes=0)
    storage, meta = deserialization.read_flashpack_file(str(path))
    assert meta == flashpack.get_flashpack_file_metadata(str(path)) == read_footer(path)
    assert len(storage) == len(storage.blocks) == 2
    assert storage.device == torch.device("cpu")
    assert storage.block(0) is storage.blocks[0]
    assert [(block.dtype, block.shape) for block in storage.blocks] == [
        (torch.int8, (7,)),
        (torch.float32, (5,)),
    ]
    pairs = deserialization.iterate_from_flash_tensor(storage, meta, ignore_names=["b"])
    assert [name for name, _ in pairs] == ["a"]


VERSIONS = """
import flashpack
import flashpack.version
from flashpack.version import __version__, __version_tuple__, commit_id, version, version_tuple

assert isinstance(version, str) and version == __version__
assert flashpack.version == flashpack.__version__ == version
assert flashpack.version_tuple == flashpack.__version_tuple__ == __version_tuple__ == version_tuple
assert flashpack.commit_id is commit_id is None
"""


@pytest.mark.parametrize("first", ["import flashpack.version", "import flashpack; flashpack.version"])
def test_the_version_and_the_module_of_that_name(first: str) -> None:
    succeed(python("-c", first + VERSIONS))


def test_the_version_under_each_of_its_names() -> None:
    assert ".".join(map(str, flashpack.version_tuple)) == flashpack.version.replace("+", ".")
