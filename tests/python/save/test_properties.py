"""Any state dict goes through a file and comes back bit for bit, ties and all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flashpack
import torch
from flashpack import deserialization
from helpers import DTYPES, assert_same, block_by_block, noise, read_footer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# On a machine of any speed.
PROPERTY = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
alignments = st.sampled_from([0, 1, 2, 3, 5, 8, 24, 64, 100, 128, 4096])


@st.composite
def plain_tensors(draw: st.DrawFn) -> Tensor:
    return noise(draw(st.sampled_from(DTYPES)), draw(shapes), draw(st.integers(0, 1000)))


@st.composite
def views(draw: st.DrawFn, base: Tensor) -> Tensor:
    """A view of `base`: another shape, other strides, a part."""
    kind = draw(st.sampled_from(["same", "flat", "permuted", "strided", "part", "conjugated", "expanded"]))
    if kind == "flat":
        return base.reshape(-1)
    if kind == "permuted":
        return base.permute(draw(st.permutations(range(base.dim()))))
    if kind == "strided" and base.dim():
        return base[:: draw(st.integers(1, 3))]
    if kind == "part" and base.dim():
        return base[draw(st.integers(0, base.shape[0])) :]
    if kind == "conjugated" and base.is_complex():
        return base.conj()
    if kind == "expanded":
        return base.expand(2, *base.shape)
    return base


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, Tensor]:
    """Up to a dozen names; some are views of earlier tensors, some the very same tensor."""
    names = draw(st.lists(texts, min_size=1, max_size=12, unique=True))
    tensors: list[Tensor] = []
    for _ in names:
        base = draw(st.sampled_from(tensors)) if tensors and draw(st.booleans()) else draw(plain_tensors())
        tensors.append(draw(views(base)))
    return {
        name: tensor
        for name, tensor in zip(names, tensors, strict=True)
        if name.rpartition(".")[2] != "_extra_state"
    } or {"a": torch.ones(1)}


@contextmanager
def fresh_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "model.flashpack"


def ties(tensors: dict[str, Tensor]) -> set[frozenset[str]]:
    """Groups of names that are the same elements in the same memory."""
    groups: dict[object, set[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and not tensor.is_conj():
            flat = tensor.is_contiguous()
            layout = tensor.numel() if flat else (tensor.shape, tensor.stride())
            groups.setdefault((tensor.data_ptr(), tensor.dtype, layout), set()).add(name)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


@PROPERTY
@given(state_dicts(), alignments, st.dictionaries(texts, texts, max_size=3))
def test_what_is_saved_is_loaded(
    tensors: dict[str, Tensor], align_bytes: int, metadata: dict[str, str]
) -> None:
    with fresh_path() as path:
        flashpack.pack_to_file(tensors, path, align_bytes=align_bytes, metadata=metadata)
        for eager in (False, True):
            loaded = flashpack.load_file(path, eager=eager, verify=True)
            assert_same(loaded, tensors)
            assert all(tensor.is_contiguous() for tensor in loaded.values())
            assert ties(loaded) == ties(tensors)
        assert flashpack.get_flashpack_file_metadata(path).get("metadata", {}) == metadata
        by_size = sorted(tensors, key=lambda name: -tensors[name].numel())
        assert list(loaded) == list(block_by_block({name: tensors[name] for name in by_size}))
        storage, footer = deserialization.read_flashpack_file(path)
        assert_same(dict(deserialization.iterate_from_flash_tensor(storage, footer)), tensors)


@PROPERTY
@given(state_dicts(), alignments)
def test_saving_what_was_loaded_gives_the_same_file(tensors: dict[str, Tensor], align_bytes: int) -> None:
    with fresh_path() as path:
        flashpack.pack_to_file(tensors, path, align_bytes=align_bytes)
        first = path.read_bytes()
        flashpack.pack_to_file(flashpack.load_file(path), path, align_bytes=align_bytes)
        assert path.read_bytes() == first


@PROPERTY
@given(state_dicts(), st.data())
def test_any_selection_in_any_order(tensors: dict[str, Tensor], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(tensors)), unique=True, min_size=1))
    with fresh_path() as path:
        flashpack.save_file(tensors, path)
        for eager in (False, True):
            part = flashpack.load_file(path, names=chosen, eager=eager)
            assert list(part) == chosen
            assert_same(part, {name: tensors[name] for name in chosen})
        flashpack.pack_to_file(tensors, path, name_order=chosen)
        in_file = list(block_by_block({name: tensors[name] for name in chosen}))
        assert list(flashpack.load_file(path)) == in_file
        assert [record["name"] for record in read_footer(path)["index"]] == in_file


@PROPERTY
@given(state_dicts(), st.sampled_from(FLOATS))
def test_a_cast_is_torchs_own(tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    with fresh_path() as path:
        flashpack.pack_to_file(tensors, path, dtype)
        loaded = flashpack.load_file(path)
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or tensor.dtype == torch.float4_e2m1fn_x2:
                assert_same({name: loaded[name]}, {name: tensor})
            else:
                torch.testing.assert_close(loaded[name], tensor.to(dtype), rtol=0, atol=0, equal_nan=True)


@PROPERTY
@given(state_dicts(), st.booleans(), st.booleans())
def test_a_model_takes_any_state(tensors: dict[str, Tensor], meta: bool, eager: bool) -> None:
    names = [f"n{number}" for number in range(len(tensors))]
    plain = dict(zip(names, (tensor.contiguous() for tensor in tensors.values()), strict=True))
    model = nn.Module()
    for name, tensor in plain.items():
        place = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta" if meta else "cpu")
        model.register_parameter(name, nn.Parameter(place, requires_grad=False))
    with fresh_path() as path:
        flashpack.save_file(plain, path)
        flashpack.assign_from_file(model, path, strict=True, eager=eager)
        assert_same(dict(model.named_parameters(remove_duplicate=False)), plain)


@PROPERTY
@given(state_dicts(), st.data())
def test_no_flipped_byte_gives_a_wrong_tensor(tensors: dict[str, Tensor], data: st.DataObject) -> None:
    with fresh_path() as path:
        flashpack.save_file(tensors, path, {"k": "v"})
        sound = bytearray(path.read_bytes())
        before = flashpack.load_file(path, eager=True)
        sound[data.draw(st.integers(0, len(sound) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(sound)
        try:
            after = flashpack.load_file(path, eager=True, verify=True)
        except ValueError as error:
            assert str(error).startswith(str(path))
        else:
            assert_same(after, before)


@PROPERTY
@given(st.binary(max_size=300), st.booleans())
def test_noise_is_refused_not_crashed_on(data: bytes, with_magic: bool) -> None:
    with fresh_path() as path:
        path.write_bytes(data + (b"FLASHPK\0" if with_magic else b""))
        assert flashpack.is_flashpack_file(path) is False
