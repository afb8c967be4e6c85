"""The options of a load: collected and checked once, then handed on as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .._core.constants import DEFAULT_CHUNK_BYTES, DEFAULT_NUM_STREAMS, SHARD_STRATEGIES
from .._core.index import records_of
from .._core.names import include_tuple, included, is_ignored_tensor_name, name_tuple
from .._core.native import environment
from .._core.paths import StrPath
from .._core.progress import Silent
from .cast import DtypeLike, requested_dtype
from .load import Device, Reading, as_device


def resolve_shard_strategy(strategy: str | None = None) -> str:
    """`strategy` in lower case. None means what FLASHPACK_SHARD_STRATEGY names, else the default.

    Raises ValueError for a name that is not one of SHARD_STRATEGIES.
    """
    name: str = environment()["FLASHPACK_SHARD_STRATEGY"] if strategy is None else strategy.strip().lower()
    if name not in SHARD_STRATEGIES:
        raise ValueError(
            f"unknown shard strategy {strategy!r} (distributed_shard_strategy, FLASHPACK_SHARD_STRATEGY): "
            f"expected {' or '.join(SHARD_STRATEGIES)}"
        )
    return name


@dataclass(frozen=True)
class LoadOptions:
    """How a file is loaded into a model. Raises ValueError on construction for what makes no sense.

    `num_streams` and `chunk_bytes` (bytes) are 0.4.5's tuning knobs: checked, else unused.
    `eager`: True reads every byte into private memory, False maps the file, None asks the environment.
    `verify`: check the file's checksums while loading; None means unless it only maps the file.
    `progress`: called with the bytes done and the bytes in all, instead of a bar.
    `in_place`: fill the memory that the model's tensors have, instead of giving them other memory.
    `dtype`: "file", "model" or a dtype, as `requested_dtype` gives it: what floating tensors are cast to.
    `cache_dir`: the folder that keeps a copy of what is read by URL.
    `include`: patterns, as `fits` takes them, of the only tensors that are loaded; None for all.
    """

    device: Device | None = None
    strict: bool | None = None
    strict_params: bool = True
    strict_buffers: bool = False
    keep_flash_ref_on_model: bool = False
    silent: bool = True
    num_streams: int = DEFAULT_NUM_STREAMS
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    ignore_names: tuple[str, ...] = ()
    ignore_prefixes: tuple[str, ...] = ()
    ignore_suffixes: tuple[str, ...] = ()
    use_distributed_loading: bool = False
    distributed_sharded: bool = False
    distributed_shard_strategy: str | None = None
    rank: int | None = None
    local_rank: int | None = None
    world_size: int | None = None
    coerce_dtype: bool = False
    eager: bool | None = None
    verify: bool | None = None
    in_place: bool = False
    progress: Callable[[int, int], None] | None = None
    dtype: DtypeLike = "file"
    cache_dir: StrPath | None = None
    include: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", requested_dtype(self.dtype))
        if self.keep_flash_ref_on_model and self.dtype != "file":
            raise ValueError(
                f"keep_flash_ref_on_model=True keeps the file's memory: it cannot hold dtype={self.dtype}"
            )
        if self.device is not None:
            object.__setattr__(self, "device", as_device(self.device))
        for option in ("ignore_names", "ignore_prefixes", "ignore_suffixes"):
            object.__setattr__(self, option, name_tuple(option, getattr(self, option)))
        object.__setattr__(self, "include", include_tuple(self.include))
        for option in ("num_streams", "chunk_bytes"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} must be at least 1, not {getattr(self, option)}")
        if self.distributed_shard_strategy is not None:
            resolve_shard_strategy(self.distributed_shard_strategy)

    @classmethod
    def pick(cls, arguments: Mapping[str, Any]) -> LoadOptions:
        """Build the options from those of `arguments` that are options."""
        return cls(**{name: arguments[name] for name in OPTION_NAMES if name in arguments})

    @classmethod
    def of(cls, model_class: type[Any], arguments: Mapping[str, Any]) -> LoadOptions:
        """`pick`, where nothing or None is given with the defaults of a class that has FlashPackMixin."""
        chosen = dict(arguments)
        for name in _BY_CLASS:
            if chosen.get(name) is None and hasattr(model_class, f"flashpack_{name}"):
                chosen[name] = getattr(model_class, f"flashpack_{name}")
        return cls.pick(chosen)

    @property
    def ignore(self) -> dict[str, tuple[str, ...]]:
        """The ignore options, as the native side takes them, and `include` if it is given."""
        return {
            "ignore_names": self.ignore_names,
            "ignore_prefixes": self.ignore_prefixes,
            "ignore_suffixes": self.ignore_suffixes,
            **({} if self.include is None else {"include": self.include}),
        }

    def check_include(self, shown: str, footer: dict[str, Any]) -> None:
        """Raise ValueError for a pattern of `include` that fits no tensor of the file."""
        if self.include is not None:
            included(shown, [name for name, _, _ in records_of(footer)], self.include)

    def ignores(self, name: str) -> bool:
        """Whether the record or the model's tensor of this name is left alone."""
        return is_ignored_tensor_name(name, **self.ignore)

    @property
    def refuses_unknown_names(self) -> bool:
        """A name of the file that the model lacks is an error, as are two values for one tied tensor."""
        return self.demands_params or self.demands_buffers

    @property
    def demands_params(self) -> bool:
        """A parameter that the file lacks is an error."""
        return self.strict_params if self.strict is None else self.strict

    @property
    def demands_buffers(self) -> bool:
        """A persistent buffer that the file lacks is an error."""
        return self.strict_buffers if self.strict is None else self.strict

    @property
    def shown(self) -> Silent:
        """How the load shows its progress."""
        return self.progress or self.silent

    @property
    def reading(self) -> Reading:
        """How it reads."""
        return {"eager": self.eager, "verify": self.verify, "silent": self.shown}


_BY_CLASS = ("ignore_names", "ignore_prefixes", "ignore_suffixes", "coerce_dtype")
OPTION_NAMES = frozenset(field.name for field in fields(LoadOptions))
