"""What the engine's tests share. Their programs run under the emulator, each in a process of its own."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import fakecuda
import flashpack
import torch
from helpers import DTYPES, MIB, assert_same, bits, dtype_id, noise
from torch import Tensor, nn

LIMIT_BYTES = 256 * MIB  # of pinned memory
COPY_STREAMS = 4  # that are kept for a device

# Many small units, so that staging buffers are used again and again even for a small file.
BUSY = {
    "FLASHPACK_READ_CHUNK_BYTES": "65536",
    "FLASHPACK_READ_THREADS": "4",
    "FLASHPACK_NO_THREAD_CLAMP": "1",
}


class Net(flashpack.FlashPackMixin, nn.Module):
    """Parameters and buffers of several types, one empty, two tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 64)
        self.body = nn.Sequential(nn.Linear(64, 1000), nn.BatchNorm1d(1000), nn.Linear(1000, 64).bfloat16())
        self.head = nn.Linear(64, 300, bias=False)
        self.head.weight = self.embed.weight
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.scale = nn.Parameter(torch.rand(()))


class Images(nn.Module):
    """A parameter that is no row-major memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)


def kinds() -> dict[str, Tensor]:
    """Tensors of every type, empty and scalar ones too, two of them tied, one of over 1 MiB."""
    tensors = {}
    for seed, dtype in enumerate(DTYPES):
        for shape in ((5, 7), (), (0, 3)):
            name = "x".join(map(str, shape)) or "scalar"
            tensors[f"{dtype_id(dtype)}.{name}"] = noise(dtype, shape, seed)
    tensors["large"] = noise(torch.float32, (301, 1009), 99)
    tensors["tied"] = tensors["int32.5x7"]
    return tensors


def pieces(size: int, seed: int) -> dict[str, Tensor]:
    """`size` MiB of tensors of about a third of one."""
    count = size * 3
    return {f"t{number}": noise(torch.uint8, (MIB // 3 - number,), seed + number) for number in range(count)}


def pinned(tensor: Tensor) -> Tensor:
    """A page-locked copy, from which copies are asynchronous."""
    return tensor.contiguous().view(torch.uint8).pin_memory()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of all that the model holds."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def places_of(model: nn.Module) -> dict[str, int]:
    """Addresses of all that the model holds."""
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


def assert_arrived(got: Mapping[str, Tensor], want: Mapping[str, Tensor], device: str) -> None:
    """All of `got` is on `device`, and bit for bit what is wanted."""
    expected = torch.device(device)
    for name, tensor in got.items():
        assert tensor.device.type == expected.type, name
        assert tensor.device.index == (expected.index or 0), name
    assert_same({name: tensor.detach().cpu() for name, tensor in got.items()}, want)


@contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """The block changes nothing in the models: same tensors, same addresses, same bits."""
    before = [(dict(model.named_parameters()), places_of(model), state_of(model)) for model in models]
    yield
    for model, (parameters, places, state) in zip(models, before, strict=True):
        now = dict(model.named_parameters())
        assert all(now[name] is parameter for name, parameter in parameters.items())
        assert places_of(model) == places
        assert_same(state_of(model), state)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables of the environment for a block; FlashPack reads them at each load."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def assert_no_conflicts() -> None:
    """Nothing so far used memory too early or let it go too early. A GPU does not tell."""
    if not fakecuda.active():
        return
    assert not fakecuda.counter("races")
    assert not fakecuda.counter("frees_in_flight")


@contextmanager
def loading() -> Iterator[Counter[str]]:
    """Counts the loads of a block, and holds them against what every load must keep. A GPU does not count."""
    if not fakecuda.active():
        yield Counter()
        return
    assert_no_conflicts()
    with fakecuda.counting() as counters:
        yield counters
    assert_no_conflicts()
    assert counters["async_copies"] > 0
    assert not counters["pageable_copies"]
    assert counters["streams_created"] - counters["streams_destroyed"] <= COPY_STREAMS
    assert counters["pinned_bytes_peak"] <= LIMIT_BYTES


def only_on(device: str) -> None:
    """No other device has a context: one costs hundreds of MB of its memory."""
    for index in range(torch.cuda.device_count()):
        assert torch._C._cuda_hasPrimaryContext(index) == (index == (torch.device(device).index or 0))


def saved(folder: str, tensors: Mapping[str, Tensor] | nn.Module) -> Path:
    """A new file in `folder` with these tensors."""
    handle, name = tempfile.mkstemp(".flashpack", dir=folder)
    os.close(handle)
    if isinstance(tensors, nn.Module):
        flashpack.pack_to_file(tensors, name, silent=True)
    else:
        flashpack.save_file(dict(tensors), name)
    return Path(name)


def equal(got: Iterable[Tensor], want: Iterable[Tensor]) -> bool:
    """Whether tensors on the CPU are the same, bit for bit."""
    return all(bits(one) == bits(other) for one, other in zip(got, want, strict=True))
