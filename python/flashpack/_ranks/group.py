"""The ranks of a load: they agree on every step, and what goes wrong on one is raised on all of them."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size_of(world_size: int | None = None) -> int:
    """How many ranks there are: of the process group, else as asked for, else as torchrun set WORLD_SIZE."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return (_environment("WORLD_SIZE") or 1) if world_size is None else world_size


def join(device: torch.device, rank: int | None = None, world_size: int | None = None) -> None:
    """Make a process group as torchrun's variables say, if there is none."""
    if not dist.is_initialized():
        rank = (_environment("RANK") or 0) if rank is None else rank
        world_size = world_size_of(world_size)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method="env://", rank=rank, world_size=world_size)


def make_group(rank: int | None, local_rank: int | None, world_size: int | None) -> None:
    """`join` unless there is a group or one rank alone; then make this rank's CUDA device the current one."""
    if dist.is_initialized() or world_size_of(world_size) == 1:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    join(device, rank, world_size)
    if device.type == "cuda":
        if local_rank is None:
            local_rank = _environment("LOCAL_RANK")
        torch.cuda.set_device(dist.get_rank() if local_rank is None else local_rank)


def own_device(
    device: torch.device,
    rank: int | None = None,
    local_rank: int | None = None,
    world_size: int | None = None,
) -> torch.device:
    """Where this rank loads to: of "cuda" the device of its local rank.

    Raises ValueError where `rank` or `world_size` are not those of the process group.
    """
    own = {"rank": (rank, dist.get_rank()), "world_size": (world_size, dist.get_world_size())}
    for name, (asked, actual) in own.items():
        if asked not in (None, actual):
            raise ValueError(f"{name}={asked}, but torch.distributed was initialized with {name}={actual}")
    if device != torch.device("cuda"):
        return device
    if local_rank is None:
        local_rank = _environment("LOCAL_RANK")
    return torch.device("cuda", torch.cuda.current_device() if local_rank is None else local_rank)


def _environment(name: str) -> int | None:
    """A variable of torchrun's, None where it is not set."""
    text = os.environ.get(name, "").strip()
    try:
        return int(text) if text else None
    except ValueError:
        raise ValueError(f"{name} must be a whole number, not {text!r}") from None


def _timeout() -> timedelta | None:
    """How long the process group's user lets ranks wait for one another, if its backend tells."""
    world: Any = dist.group.WORLD
    with suppress(AttributeError, RuntimeError):
        timeout: timedelta = world._get_backend(world._device_types[0]).options._timeout
        return timeout
    return None


class Ranks:
    """All ranks, for one load. Every method is called by all of them, in the same order.

    Messages go over a gloo group of their own, which ends with the load: when a rank is lost or gives up, its
    connections close, and whoever waits for it gets an error at once. Broadcasts use a second group: a rank
    cannot leave a group before its pending broadcasts end, and these may need a rank that waits for a message
    of this one. A rank that only stands still is waited for as long as in the user's own group.
    """

    def __init__(self, path: str) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._path = path
        self._messages: Any = dist.new_group(backend="gloo", timeout=_timeout())
        self._data: Any = dist.new_group(backend="gloo", timeout=_timeout())

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for group in (self._messages, self._data):
            with suppress(RuntimeError, ValueError):
                dist.destroy_process_group(group)
        data = [self._data]
        del group, self._messages, self._data
        if kind is not None:
            # Dropping the last reference blocks until the pending broadcasts fail or time out.
            threading.Thread(target=data.clear, name="flashpack-leaves-group", daemon=True).start()

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each rank. Raises on all of them what it raises on one."""
        try:
            result = work()
        except BaseException as error:
            with suppress(RuntimeError):  # another rank is gone: this error is the one to tell
                self._exchange((portable(error), None))
            raise
        outcomes = self._exchange((None, result))
        for rank, (failure, _) in enumerate(outcomes):
            if failure is not None:
                raise failure from RuntimeError(f"rank {rank} of {self.size} failed to load {self._path}")
        return [value for _, value in outcomes]

    def agree(self, work: Callable[[], T]) -> T:
        """What `work` returns on this rank, once it has succeeded on all of them."""
        result: list[T] = []
        self.gather(lambda: result.append(work()))
        return result[0]

    def broadcast(self, data: Tensor, src: int) -> dist.Work:
        """Begin to send `data` of rank `src` to all others."""
        # For CUDA tensors the user's own group, if that is of a better kind: gloo copies through the host.
        own = data.is_cpu or dist.get_backend() == "gloo"
        work = dist.broadcast(data, src, group=self._data if own else None, async_op=True)
        assert work is not None  # every rank is in the group
        return work

    def wait(self, work: dist.Work) -> None:
        """Wait for a broadcast. Raises RuntimeError if a rank is lost."""
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _exchange(self, mine: Any) -> list[Any]:
        outcomes: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(outcomes, mine, group=self._messages)
        except RuntimeError as error:
            raise self._lost(error) from error
        return outcomes

    def _lost(self, error: RuntimeError) -> RuntimeError:
        traceback.clear_frames(error.__traceback__)  # torch's frames keep the group alive with the error
        return RuntimeError(f"{self._path}: another rank was lost while the file was loaded: {error}")


def portable(error: BaseException) -> BaseException:
    """The same error, or one that tells of it if it cannot be sent."""
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception as reason:  # noqa: BLE001 (whatever its class does when it is pickled)
        return RuntimeError(f"{type(error).__name__}: {error} ({reason})")
    return copy
