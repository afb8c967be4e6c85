"""Files written here load in flashpack 0.4.5 bit for bit, and files written there load here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
import upstream
from flashpack import deserialization
from helpers import (
    DTYPES,
    FIXTURES,
    NOT_IN_0_4_5,
    assert_same,
    bits,
    block_by_block,
    dtype_id,
    noise,
    read_footer,
)
from torch import Tensor, nn

KNOWN = [dtype for dtype in DTYPES if dtype not in NOT_IN_0_4_5]
# Name, dtype, shape and digest of every tensor, in order.
Summary = list[list[Any]]


def summary(pairs: Iterable[tuple[str, Tensor]]) -> Summary:
    return [
        [name, dtype_id(tensor.dtype), list(tensor.shape), hashlib.sha256(bits(tensor)).hexdigest()]
        for name, tensor in pairs
    ]


def as_seen_there(given: Summary) -> Summary:
    """0.4.5 gives a scalar the shape (1,)."""
    return [[name, dtype, shape or [1], digest] for name, dtype, shape, digest in given]


def by_size(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: -tensors[name].numel())


def ordinary(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(10))


def one_dtype(dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "matrix": noise(dtype, (7, 9), seed=1),
        "scalar": noise(dtype, (), seed=2),
        "row": noise(dtype, (33,), seed=3),
        "empty": torch.empty((0, 4), dtype=dtype),
        "cube": noise(dtype, (2, 3, 5), seed=4),
    }


def all_dtypes() -> dict[str, Tensor]:
    return {
        f"{dtype_id(dtype)}.{name}": tensor
        for dtype in KNOWN
        for name, tensor in one_dtype(dtype).items()
        if name != "cube"
    }


def odd_names() -> dict[str, Tensor]:
    names = ["层.重み", 'qu"ote\\', "a b\n\t", "\u00e9", "e\u0301", "🔥", "\u2028", "x" * 3000]
    return {name: noise(torch.float16, (number + 1,), number) for number, name in enumerate(names)}


def equal_sizes() -> dict[str, Tensor]:
    dtypes = [torch.float32, torch.int64, torch.bool]
    return {f"{n}": noise(dtypes[n % 3], (8,) if n % 2 else (2, 4), n) for n in (5, 3, 9, 0, 7, 1)}


def tied() -> dict[str, Tensor]:
    weight = noise(torch.float32, (16, 8))
    return {
        "embed": weight,
        "bias": noise(torch.float16, (16,), seed=1),
        "head": weight,
        "flat": weight.view(-1),
    }


def views() -> dict[str, Tensor]:
    whole = noise(torch.float32, (6, 4, 5, 3))
    return {
        "channels last": whole.contiguous(memory_format=torch.channels_last),
        "transposed": whole.permute(3, 1, 0, 2),
        "strided": whole[::2, 1:3],
        "expanded": whole[:1].expand(4, 4, 5, 3),
        "conjugate": torch.view_as_complex(whole[..., :2].contiguous()).conj(),
    }


def empty_block() -> dict[str, Tensor]:
    return {
        "a": noise(torch.float32, (3,)),
        "none": torch.empty(0, dtype=torch.int64),
        "b": noise(torch.int8, (5,)),
    }


# What to pack, and how.
Case = tuple[dict[str, Tensor], dict[str, Any]]
SHARED: dict[str, Callable[[], Case]] = {
    **{f"v3 {dtype_id(dtype)}": lambda dtype=dtype: (one_dtype(dtype), {}) for dtype in KNOWN},
    **{
        f"v4 aligned to {n}": lambda n=n: (all_dtypes(), {"align_bytes": n})
        for n in (0, 8, 64, 96, 128, 4096)
    },
    **{
        f"v3 aligned to {n}": lambda n=n: (one_dtype(torch.bfloat16), {"align_bytes": n})
        for n in (0, 1, 64, 4096)
    },
    "names": lambda: (odd_names(), {}),
    "equal sizes": lambda: (equal_sizes(), {}),
    "name order": lambda: (equal_sizes(), {"name_order": ["1", "absent", "9", "0", "5"]}),
    "one scalar": lambda: ({"only": noise(torch.float64)}, {}),
    "many": lambda: ({f"{n}.weight": noise(torch.int8, (n % 40,), n) for n in range(300)}, {}),
    "target dtype": lambda: (
        {"a": ordinary(9, 9), "b": ordinary(3).double()},
        {"target_dtype": torch.bfloat16},
    ),
}
HERE_ONLY: dict[str, Callable[[], Case]] = {
    "tied": lambda: (tied(), {}),
    "views": lambda: (views(), {}),
    "empty block": lambda: (empty_block(), {}),
    "metadata": lambda: (all_dtypes(), {"metadata": {"format": "pt", "licence": "mit", "層": "🔥"}}),
    "integers under a target dtype": lambda: (
        {"a": ordinary(9), "steps": torch.tensor(2301)},
        {"target_dtype": torch.float16},
    ),
    "blake3": lambda: (all_dtypes(), {"checksum": "blake3"}),
    "signed": lambda: (all_dtypes(), {"checksum": "blake3", "metadata": {"licence": "mit"}}),
    "several chunks of digests": lambda: ({"big": noise(torch.uint8, (5 << 20,)), "b": torch.ones(3)}, {}),
}
HERE = {**SHARED, **HERE_ONLY}


def expected_tensors(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a file of these holds, in its order of names."""
    order = options.get("name_order") or by_size(tensors)
    target = options.get("target_dtype")
    return block_by_block(
        {
            name: tensors[name].to(target) if target and tensors[name].is_floating_point() else tensors[name]
            for name in order
            if name in tensors
        }
    )


@pytest.fixture(scope="module")
def old() -> Path:
    return upstream.install()


# From here to there.

READ_THERE = """
import hashlib, json, sys
from pathlib import Path
import torch
from flashpack import assign_from_file, get_flashpack_file_metadata, is_flashpack_file
from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file, revert_from_file

def digest(tensor):
    data = tensor.detach().reshape(-1)
    data = data.view(torch.uint8).numpy().tobytes() if data.numel() else b""
    return hashlib.sha256(data).hexdigest()

def summary(pairs):
    return [[n, str(t.dtype).removeprefix("torch."), list(t.shape), digest(t)] for n, t in pairs]

def model_for(tensors):
    model = torch.nn.Module()
    for name, tensor in tensors.items():
        parameter = torch.nn.Parameter(torch.zeros_like(tensor), requires_grad=False)
        model._parameters[name] = parameter
    model.get_submodule = lambda path, find=model.get_submodule: model  # names with dots are flat here
    return model

result = {}
for path in map(Path, sys.argv[1:]):
    assert is_flashpack_file(str(path))
    storage, footer = read_flashpack_file(str(path))
    tensors = dict(iterate_from_flash_tensor(storage, footer))
    model = model_for(tensors)
    entry = result[path.stem] = {"read": summary(tensors.items())}
    entry["reverted"] = summary(revert_from_file(str(path)).items())
    entry["names"] = [record["name"] for record in footer["index"]]
    if all("." not in name for name in tensors):
        assign_from_file(model, str(path), device="cpu")
        entry["assigned"] = summary((name, dict(model.named_parameters())[name]) for name in tensors)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def read_there(old: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("here")
    paths = []
    for number, (case, make) in enumerate(HERE.items()):
        tensors, options = make()
        paths.append(folder / f"{number}.flashpack")
        flashpack.pack_to_file(tensors, paths[-1], **options)
        if case == "signed":
            flashpack.sign_file(paths[-1], FIXTURES / "keys" / "private.pem")
            assert "signature" in read_footer(paths[-1])
    seen = json.loads(upstream.run(old, READ_THERE, *paths).splitlines()[-1])
    return {case: {**seen[str(number)], "path": paths[number]} for number, case in enumerate(HERE)}


@pytest.mark.parametrize("case", HERE)
def test_written_here_loads_there(read_there: dict[str, Any], case: str) -> None:
    expected = expected_tensors(*HERE[case]())
    seen = read_there[case]
    wanted = as_seen_there(summary(expected.items()))
    assert seen["read"] == wanted
    assert seen["reverted"] == wanted
    assert seen["names"] == list(expected)
    if "assigned" in seen:
        assert seen["assigned"] == wanted
    else:
        assert any("." in name for name in expected)


@pytest.mark.parametrize("case", HERE)
def test_written_here_has_checksums_all_the_same(read_there: dict[str, Any], case: str) -> None:
    path = read_there[case]["path"]
    result = flashpack.verify_file(path)
    assert result.algorithm == HERE[case]()[1].get("checksum", "xxh3_64")
    assert result.verified_bytes == result.payload_bytes
    blocks = read_footer(path).get("macroblocks", [])
    assert [block["offset_bytes"] % 4096 for block in blocks] == [0] * len(blocks)


ASSIGN_THERE = """
import hashlib, json, sys
import torch
from torch import nn
from flashpack import FlashPackMixin, assign_from_file

class Model(nn.Module, FlashPackMixin):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2)
        self.norm = nn.BatchNorm2d(4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

def digests(model):
    return {
        name: hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
    }

live = Model()
before = digests(live)
assign_from_file(live, sys.argv[1], strict=True)
fresh = Model.from_flashpack(sys.argv[1], silent=True, strict_buffers=True)
assert digests(live) == digests(fresh) != before
print(json.dumps(digests(live)))
"""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])


def test_a_model_packed_here_is_assigned_there(old: Path, path: Path) -> None:
    model = Model()
    flashpack.pack_to_file(model, path)
    seen = json.loads(upstream.run(old, ASSIGN_THERE, path).splitlines()[-1])
    expected = {name: hashlib.sha256(bits(tensor)).hexdigest() for name, tensor in model.state_dict().items()}
    assert seen == expected


# From there to here.

WRITE_THERE = """
import sys
import torch
from flashpack import pack_to_file

cases = torch.load(sys.argv[1], weights_only=True)
for number, (tensors, options) in enumerate(cases):
    pack_to_file(tensors, f"{sys.argv[2]}/{number}.flashpack", **{"target_dtype": None, **options})
"""


@pytest.fixture(scope="module")
def written_there(old: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("there")
    torch.save([make() for make in SHARED.values()], folder / "cases.pt")
    upstream.run(old, WRITE_THERE, folder / "cases.pt", folder)
    return {case: folder / f"{number}.flashpack" for number, case in enumerate(SHARED)}


def by_blocks(path: Path) -> dict[str, Tensor]:
    storage, footer = deserialization.read_flashpack_file(path)
    return dict(deserialization.iterate_from_flash_tensor(storage, footer))


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "lazy": lambda path: flashpack.load_file(path, eager=False),
    "eager": lambda path: flashpack.load_file(path, eager=True),
    "blocks": by_blocks,
    "reverted": deserialization.revert_from_file,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", SHARED)
def test_written_there_loads_here(written_there: dict[str, Path], case: str, reader: str) -> None:
    expected = expected_tensors(*SHARED[case]())
    loaded = READERS[reader](written_there[case])
    assert list(loaded) == list(expected)
    assert_same(loaded, expected)


@pytest.mark.parametrize("case", SHARED)
def test_written_there_is_sound_without_checksums(written_there: dict[str, Path], case: str) -> None:
    assert flashpack.is_flashpack_file(written_there[case])
    assert flashpack.verify_file(written_there[case]).algorithm is None


@pytest.mark.parametrize("case", SHARED)
def test_both_write_the_same_footer(
    read_there: dict[str, Any], written_there: dict[str, Path], case: str
) -> None:
    """Ours differs from 0.4.5's in its extensions and in where blocks start only."""
    ours, theirs = read_footer(read_there[case]["path"]), read_footer(written_there[case])
    del ours["checksums"]
    for footer in (ours, theirs):
        footer.pop("total_payload_bytes", None)
        for block in footer.get("macroblocks", []):
            del block["offset_bytes"]
    assert ours == theirs


REFUSED = """
import sys
from flashpack.deserialization import read_flashpack_file
try:
    read_flashpack_file(sys.argv[1])
except ValueError as error:
    print(error)
"""


def test_compressed_files_are_refused_there_by_name(old: Path, path: Path) -> None:
    flashpack.save_file({"a": ordinary(1 << 16).bfloat16()}, path, compress="fast")
    assert upstream.run(old, REFUSED, path).strip() == "Unexpected format: flashpack_v5"
