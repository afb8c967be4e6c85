"""Loads to devices bring the right bytes, in the order of the caller's stream, in every order CUDA allows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import engine
import fakecuda
import flashpack
import pytest
import torch
from engine import Images, Net, assert_arrived, loading, only_on, pinned, saved, state_of, untouched
from flashpack._core import ops as _ops
from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file
from helpers import MIB, flip_byte, noise, place_of, record_of
from torch import Tensor

pytestmark = pytest.mark.usefixtures("emulator")

# With two devices the second is used and the first must stay alone.
PLACES = [*((mode, "cuda") for mode in fakecuda.MODES), *((mode, "cuda:1") for mode in fakecuda.MODES)]


def check(program: Callable[..., None], folder: Path, mode: str, device: str, **knobs: float) -> None:
    devices = 2 if device == "cuda:1" else 1
    counters = (
        fakecuda.call(program, str(folder), device, mode=mode, devices=devices, **knobs).check().counters
    )
    assert not counters["races"] + counters["frees_in_flight"]


# --- The right bytes, by every route. --------------------------------------------------------------


def files(folder: str, device: str) -> None:
    want = engine.kinds()
    path = saved(folder, want)
    some = ["large", "bool.5x7", "tied", "int64.scalar", "float16.0x3"]
    for direct in ("0", "1"):
        with engine.environment(FLASHPACK_DIRECT_IO=direct):
            with loading():
                got = flashpack.load_file(path, device)
            assert_arrived(got, want, device)
            assert got["tied"].data_ptr() == got["int32.5x7"].data_ptr()
            with loading():
                got = flashpack.load_file(path, torch.device(device), names=some, verify=True)
            assert list(got) == some
            assert_arrived(got, {name: want[name] for name in some}, device)
    with engine.environment(**engine.BUSY), loading():
        got = flashpack.load_file(path, device, verify=False)
    assert_arrived(got, want, device)
    with loading():
        storage, footer = read_flashpack_file(path, device=device)
    assert storage.device.type == "cuda"
    assert_arrived(dict(iterate_from_flash_tensor(storage, footer)), want, device)
    with engine.environment(FLASHPACK_READ_THREADS="3"):
        assert flashpack.load_file(path, device, names=[]) == {}
    compressed = Path(folder, "compressed")
    flashpack.save_file(want, compressed, compress="fast")
    for direct in ("0", "1"):
        with engine.environment(FLASHPACK_DIRECT_IO=direct), loading():
            got = flashpack.load_file(compressed, device, verify=True)
        assert_arrived(got, want, device)
    empty = {"none": torch.empty(0, 7)}
    assert_arrived(flashpack.load_file(saved(folder, empty), device), empty, device)
    operators(path, want, device)


def operators(path: Path, want: dict[str, Tensor], device: str) -> None:
    ops, names, on = torch.ops.flashpack, list(want), torch.device(device)
    model = ops.open(str(path))
    for load in (
        lambda: ops.load(str(path), names, device=on),
        lambda: ops.load.names(model, names, device=on),
    ):
        with loading():
            got = dict(zip(names, load(), strict=True))
        assert_arrived(got, want, device)
    with loading():
        got = dict(zip(*ops.load.ignoring(model, ignore_prefixes=["float"], device=on), strict=True))
    assert_arrived(got, {k: v for k, v in want.items() if not k.startswith("float")}, device)
    with loading():
        blocks = ops.load.blocks(model, device=on)
    for name in ("large", "bool.5x7", "tied"):
        record = record_of(path, name)
        flat = blocks[record["macroblock"]].narrow(0, record["offset"], record["length"])
        assert_arrived({name: flat.view(want[name].shape)}, {name: want[name]}, device)
    given = [torch.zeros_like(want[name], device=on) for name in ("large", "tied", "int32.5x7")]
    places = [tensor.data_ptr() for tensor in given]
    with loading():
        ops.fill(model, ["large", "tied", "int32.5x7"], given)
    assert_arrived(
        {str(i): t for i, t in enumerate(given)},
        dict(zip("012", (want["large"], want["tied"], want["tied"]), strict=True)),
        device,
    )
    assert [tensor.data_ptr() for tensor in given] == places
    with loading():
        ops.assign(str(path), ["large"], [given[0]])
    assert_arrived({"large": given[0]}, {"large": want["large"]}, device)


# --- Models. ---------------------------------------------------------------------------------------


def models(folder: str, device: str) -> None:
    source = Net()
    path, want = saved(folder, source), state_of(source)
    for model in (Net(), Net().to("meta"), Net().to(device)):
        parameters = dict(model.named_parameters())
        on_meta = model.scale.is_meta
        with loading():
            flashpack.assign_from_file(model, path, device=device)
        assert_arrived(model.state_dict(), want, device)
        assert model.head.weight is model.embed.weight
        assert on_meta or all(parameters[name] is it for name, it in model.named_parameters())
    with loading():
        flashpack.assign_from_file(model, path)  # where it is
    assert_arrived(model.state_dict(), want, device)
    with loading():
        model = Net.from_flashpack(path, device=device, silent=True)
    assert_arrived(model.state_dict(), want, device)
    with loading():
        flashpack.assign_from_file(model, path, keep_flash_ref_on_model=True)
    assert_arrived(model.state_dict(), want, device)
    assert model._flash_shared_storage.device.type == "cuda"
    damaged(folder, device)
    in_place(folder, device)


def damaged(folder: str, device: str) -> None:
    """Damage is found by default, before the model changes."""
    path = saved(folder, Net())
    flip_byte(path, place_of(path, "body.0.weight")[0] + 5)
    here, there = Net(), Net().to(device)
    with untouched(here, there):
        for model in (here, there):
            with pytest.raises(flashpack.ChecksumError, match="is damaged"):
                flashpack.assign_from_file(model, path, device=device)
        with pytest.raises(flashpack.ChecksumError, match=r"body\.0\.weight"):
            flashpack.load_file(path, device)
    with loading():
        flashpack.assign_from_file(here, path, device=device, verify=False)


def in_place(folder: str, device: str) -> None:
    for place in (device, "cpu"):
        model, source = Net().to(place), Net()
        path, places = saved(folder, source), engine.places_of(model)
        with loading() if place == device else nullcontext(Counter[str]()) as counters:
            flashpack.assign_from_file(model, path, in_place=True)
        assert not counters["device_allocs"]
        assert engine.places_of(model) == places
        engine.assert_same(state_of(model), state_of(source))
    refusals(folder, device)
    images, other = Images(), Images()  # on the device this needs a kernel, which the emulator has not
    places = engine.places_of(images)
    flashpack.assign_from_file(images, saved(folder, other), in_place=True)
    assert images.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert engine.places_of(images) == places
    engine.assert_same(state_of(images), state_of(other))


def refusals(folder: str, device: str) -> None:
    """What cannot be loaded in place is found before the first byte."""
    there = Net().to(device)
    wide, half, moved = Net(), Net(), Net()
    wide.scale = torch.nn.Parameter(torch.rand(2))
    half.scale = torch.nn.Parameter(torch.rand(()).half())
    with untouched(there):
        for other in (wide, half):
            with pytest.raises(ValueError, match="scale"):
                flashpack.assign_from_file(there, saved(folder, other), in_place=True)
        with pytest.raises(ValueError, match="nothing is moved"):
            flashpack.assign_from_file(there, saved(folder, moved), device="cpu", in_place=True)
    with untouched(moved), pytest.raises(ValueError, match="nothing is moved"):
        flashpack.assign_from_file(moved, saved(folder, Net()), device=device, in_place=True)
    moved.scale = torch.nn.Parameter(moved.scale.detach().to(device))
    with untouched(moved), pytest.raises(ValueError, match="nothing is moved"):
        flashpack.assign_from_file(moved, saved(folder, Net()), in_place=True)


def loads(folder: str, device: str) -> None:
    files(folder, device)
    only_on(device)
    models(folder, device)
    only_on(device)


@pytest.mark.parametrize(("mode", "device"), PLACES)
def test_loads(mode: str, device: str, tmp_path: Path) -> None:
    check(loads, tmp_path, mode, device)


# --- The order of the caller's stream. -------------------------------------------------------------


def order(folder: str, device: str) -> None:
    with engine.environment(**engine.BUSY):
        want = engine.pieces(24, 0)
        path = saved(folder, want)
        buffers_go_round(path, want, device)
        among_queued_work(path, want, device, torch.cuda.Stream(device))
        one_after_another(folder, device)
        from_threads(folder, device)


def buffers_go_round(path: Path, want: dict[str, Tensor], device: str) -> None:
    flashpack.release_pinned_pool()
    for verify in (False, True):
        with loading() as counters:
            got = flashpack.load_file(path, device, verify=verify)
        assert_arrived(got, want, device)
        assert counters["h2d_copies"] > 1.5 * counters["pinned_bytes"] / MIB
    assert counters["pinned_bytes"] <= 12 * MIB


def among_queued_work(path: Path, want: dict[str, Tensor], device: str, on: torch.cuda.Stream) -> None:
    """Work queued before the load still uses its memory; work queued after it finds the bytes."""
    with torch.cuda.stream(on):
        storage = flashpack.load_file(path, device)["t0"].untyped_storage()
        size, place = storage.nbytes(), storage.data_ptr()
        on.synchronize()
        del storage
        old, fresh = pinned(noise(torch.uint8, (size,), 1)), pinned(noise(torch.uint8, (size,), 2))
        back = {name: torch.empty_like(tensor).pin_memory() for name, tensor in want.items()}
        after, twice = torch.empty(size, dtype=torch.uint8).pin_memory(), torch.empty_like(fresh).pin_memory()
        with fakecuda.knobs(latency_us=3000), loading():
            before = torch.empty(size, dtype=torch.uint8, device=device)
            assert before.data_ptr() == place
            for _ in range(3):
                before.copy_(old, non_blocking=True)
            after.copy_(before, non_blocking=True)
            del before
            got = flashpack.load_file(path, device)
            assert got["t0"].untyped_storage().data_ptr() == place
            doubles = {name: tensor.clone() for name, tensor in got.items()}
            for name, tensor in doubles.items():
                back[name].copy_(tensor, non_blocking=True)
            del got, tensor
            again = torch.empty(size, dtype=torch.uint8, device=device)
            assert again.data_ptr() == place
            again.copy_(fresh, non_blocking=True)
            twice.copy_(again, non_blocking=True)
    on.synchronize()
    assert torch.equal(after, old)
    engine.assert_same(back, want)
    assert torch.equal(twice, fresh)


def one_after_another(folder: str, device: str) -> None:
    """Loads that find the staging buffers of the one before still busy."""
    wanted = [engine.pieces(4, 1000 * number) for number in range(4)]
    paths = [saved(folder, want) for want in wanted]
    given = {name: torch.empty_like(tensor, device=device) for name, tensor in wanted[0].items()}
    torch.cuda.synchronize(device)
    with fakecuda.knobs(latency_us=3000), loading():
        got = [flashpack.load_file(path, device, verify=False) for path in paths]
        for path in paths:  # each over the one before
            torch.ops.flashpack.fill(
                torch.ops.flashpack.open(str(path)), list(given), list(given.values()), verify=False
            )
    for one, want in zip([*got, given], [*wanted, wanted[-1]], strict=True):
        assert_arrived(one, want, device)


def from_threads(folder: str, device: str) -> None:
    wanted = [engine.pieces(4, 1000 * number) for number in range(4)]
    paths = [saved(folder, want) for want in wanted]
    backs = [{name: torch.empty_like(t).pin_memory() for name, t in want.items()} for want in wanted]
    done: list[int] = []

    def load(number: int) -> None:
        on = torch.cuda.Stream(device)
        with torch.cuda.stream(on):
            for _ in range(3):
                got = flashpack.load_file(paths[number], device)
                for name, tensor in got.items():
                    backs[number][name].copy_(tensor, non_blocking=True)
                del got, tensor
        on.synchronize()
        done.append(number)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(len(paths))]
    torch.cuda.Stream(device)  # the first makes torch's whole pool of them
    with loading():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(done) == [0, 1, 2, 3]
    for back, want in zip(backs, wanted, strict=True):
        engine.assert_same(back, want)


@pytest.mark.parametrize(("mode", "device"), PLACES)
def test_order(mode: str, device: str, tmp_path: Path) -> None:
    check(order, tmp_path, mode, device)


# --- Pinned memory. --------------------------------------------------------------------------------


def pool(folder: str, device: str) -> None:
    want = engine.pieces(6, 0)
    path = saved(folder, want)
    torch.empty(1, device=device)
    fakecuda.reset()
    with fakecuda.knobs(latency_us=3000), fakecuda.counting() as counters:
        got = flashpack.load_file(path, device)
        held = fakecuda.counter("pinned_bytes")
        assert _ops.pinned_usage() == (held, held, False)
        assert held > 0
        flashpack.release_pinned_pool()  # while the copies may still run
        assert fakecuda.counter("pinned_bytes") == _ops.pinned_usage().bytes == 0
    assert counters["events_created"] == counters["events_destroyed"]
    engine.assert_no_conflicts()
    assert_arrived(got, want, device)
    flashpack.release_pinned_pool()  # there is nothing
    flashpack.load_file(path, device)
    thread = threading.Thread(target=flashpack.release_pinned_pool)  # which has no current context
    thread.start()
    thread.join()
    assert fakecuda.counter("pinned_bytes") == _ops.pinned_usage().bytes == 0
    with engine.environment(FLASHPACK_CACHE_PINNED="0", **engine.BUSY), fakecuda.knobs(latency_us=3000):
        with loading() as counters:
            got = flashpack.load_file(path, device)
        assert counters["pinned_registers"] == counters["pinned_unregisters"] > 0
        assert counters["pinned_bytes"] == _ops.pinned_usage().bytes == 0
        assert_arrived(got, want, device)
        flip_byte(path, 3)
        with pytest.raises(flashpack.ChecksumError):
            flashpack.load_file(path, device)
        assert _ops.pinned_usage().bytes == 0


@pytest.mark.parametrize("mode", fakecuda.MODES)
def test_pool(mode: str, tmp_path: Path) -> None:
    check(pool, tmp_path, mode, "cuda")


def bounded(folder: str, device: str) -> None:
    """Many threads with large chunks, a slow link and two loads at once: every buffer that may be had is."""
    path = saved(folder, {"all": torch.zeros(400 * MIB, dtype=torch.uint8)})
    settings = {"FLASHPACK_READ_THREADS": "64", "FLASHPACK_READ_CHUNK_BYTES": str(64 * MIB)}
    with engine.environment(FLASHPACK_NO_THREAD_CLAMP="1", **settings), loading() as counters:
        threads = [threading.Thread(target=flashpack.load_file, args=(path, device)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counters["h2d_bytes"] >= 800 * MIB
    assert engine.LIMIT_BYTES // 2 < counters["pinned_bytes_peak"] <= engine.LIMIT_BYTES
    assert _ops.pinned_usage().peak_bytes == counters["pinned_bytes_peak"]
    for limit in (5 * MIB, MIB):  # beyond which buffers go that there are already
        with engine.environment(FLASHPACK_PINNED_BYTES=str(limit)):
            flashpack.load_file(path, device)
            assert _ops.pinned_usage().bytes <= max(limit, 2 * MIB)
            flashpack.release_pinned_pool()
            with engine.environment(FLASHPACK_NO_THREAD_CLAMP="1", **settings), loading() as counters:
                flashpack.load_file(path, device)
        assert 0 < counters["pinned_bytes_peak"] <= max(limit, 2 * MIB)


def test_pinned_memory_is_bounded(tmp_path: Path) -> None:
    check(bounded, tmp_path, "plain", "cuda", data=0, bw_h2d=1e9)
