"""FlashPackMixin: the README's examples, which arguments go where, and building without memory."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import flashpack
import pytest
import torch
from flashpack import FlashPackMixin
from helpers import assert_same, bits
from torch import Tensor, nn


class MyModule(nn.Module, FlashPackMixin):
    """The README's example."""

    def __init__(self, some_arg: int = 4) -> None:
        super().__init__()
        self.some_arg = some_arg
        self.fc1 = nn.Linear(some_arg, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("positions", torch.arange(some_arg), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.fc1(x))
        return out


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def module() -> MyModule:
    return MyModule(some_arg=4)


@pytest.fixture
def packed(module: MyModule, path: Path) -> Path:
    module.save_flashpack(path)
    return path


def test_as_the_readme_says(module: MyModule, tmp_path: Path) -> None:
    path = str(tmp_path / "model.flashpack")
    module.save_flashpack(path)
    for loaded in (module.from_flashpack(path, some_arg=4), MyModule.from_flashpack(path, some_arg=4)):
        assert type(loaded) is MyModule
        assert loaded is not module
        assert_same(loaded.state_dict(), module.state_dict())
        assert not loaded.training
        inputs = torch.randn(5, 4)
        assert torch.equal(loaded(inputs), module.eval()(inputs))


def test_the_mixin_may_come_first(path: Path) -> None:
    class First(FlashPackMixin, nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

    model = First()
    model.save_flashpack(path)
    assert_same(First.from_flashpack(path).state_dict(), model.state_dict())


def test_saving_takes_the_options_of_pack_to_file(module: MyModule, path: Path) -> None:
    module.save_flashpack(path, torch.float16, ["fc1.weight"], 0, True, 4)
    assert_same(flashpack.load_file(path), {"fc1.weight": module.fc1.weight.detach().half()})
    assert flashpack.get_flashpack_file_metadata(path)["align_bytes"] == 0


def test_a_loaded_model_can_be_trained(packed: Path) -> None:
    loaded = MyModule.from_flashpack(packed).train()
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    before, on_disk = bits(loaded.fc1.weight), packed.read_bytes()
    loaded(torch.randn(8, 4)).pow(3).sum().backward()
    optimizer.step()
    assert bits(loaded.fc1.weight) != before
    assert packed.read_bytes() == on_disk


def test_buffers_are_real_from_the_start(packed: Path) -> None:
    loaded = MyModule.from_flashpack(packed)
    assert torch.equal(loaded.positions, torch.arange(4))


# Arguments


class Curious(nn.Module, FlashPackMixin):
    """Remembers what it was built with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs
        self.weight = nn.Parameter(torch.zeros(2))


class Ranked(Curious):
    def __init__(self, size: int = 2, rank: int | None = None, device: str | None = None) -> None:
        super().__init__(size=size, rank=rank, device=device)


@pytest.fixture
def weight(path: Path) -> Path:
    flashpack.save_file({"weight": torch.ones(2)}, path)
    return path


def test_positional_and_keyword_arguments_reach_the_initialiser(weight: Path) -> None:
    built = Curious.from_flashpack(weight, 1, "two", depth=3)
    assert built.args == (1, "two")
    assert built.kwargs == {"depth": 3}
    assert built.weight.eq(1).all()


def test_load_options_do_not_reach_the_initialiser(weight: Path) -> None:
    built = Curious.from_flashpack(
        weight,
        device="cpu",
        silent=True,
        strict=True,
        coerce_dtype=True,
        ignore_names=["x"],
        eager=True,
        verify=True,
        num_streams=2,
        keep_flash_ref_on_model=True,
    )
    assert built.kwargs == {}
    assert built._flash_shared_storage is not None


def test_arguments_that_the_initialiser_does_not_know_are_named_in_a_warning(packed: Path) -> None:
    with pytest.warns(UserWarning) as caught:
        loaded = MyModule.from_flashpack(packed, some_arg=4, nobody_knows=1, devcie="cuda", some_agr=5)
    assert loaded.some_arg == 4
    assert [str(each.message) for each in caught] == [
        "flashpack: unknown keyword arguments are ignored: ['devcie', 'nobody_knows', 'some_agr']; "
        "did you mean 'device' for 'devcie', 'some_arg' for 'some_agr'?"
    ]
    assert caught[0].filename == __file__


def test_an_option_misspelt_among_any_arguments_is_warned_of(weight: Path) -> None:
    with pytest.warns(UserWarning, match="did you mean 'strict_params' for 'stric_params'"):
        built = Curious.from_flashpack(weight, stric_params=False, depth=3)
    assert built.kwargs == {"stric_params": False, "depth": 3}


def test_many_unknown_arguments_make_a_short_warning(packed: Path) -> None:
    unknown = {f"{'x' * 5000}{number}": number for number in range(1000)}
    with pytest.warns(UserWarning, match=r"and \d+ more\]") as caught:
        MyModule.from_flashpack(packed, **unknown)
    assert len(str(caught[0].message)) < 4096


def test_ranks_go_to_both(weight: Path) -> None:
    assert Ranked.from_flashpack(weight, rank=3).kwargs["rank"] == 3
    assert Ranked.from_flashpack(weight).kwargs["rank"] is None
    assert Ranked.from_flashpack(weight, rank=3, device="cpu").kwargs["device"] is None


def test_a_missing_argument_is_the_initialisers_own_error(weight: Path) -> None:
    class Demanding(Curious):
        def __init__(self, needed: int) -> None:
            super().__init__(needed)

    with pytest.raises(TypeError, match="needed"):
        Demanding.from_flashpack(weight)


def test_init_fn_builds_instead_of_the_class(weight: Path) -> None:
    def build(color: str) -> Curious:
        return Curious(color)

    assert Curious.from_flashpack(weight, init_fn=build, color="red").args == ("red",)


def test_a_named_init_method_builds_instead_of_the_class(weight: Path) -> None:
    class FromConfig(Curious):
        flashpack_init_method = "from_config"

        @classmethod
        def from_config(cls, config: dict[str, int]) -> FromConfig:
            return cls(origin="config", **config)

    assert FromConfig.from_flashpack(weight, config={"depth": 2}).kwargs == {"origin": "config", "depth": 2}
    assert FromConfig.from_flashpack(weight, {"depth": 5}).kwargs["depth"] == 5
    direct = FromConfig.from_flashpack(weight, init_fn=FromConfig, depth=7)
    assert direct.kwargs == {"depth": 7}


@pytest.mark.parametrize("result", [None, 3, {}])
def test_an_initialiser_that_gives_no_module(result: object, weight: Path) -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        Curious.from_flashpack(weight, init_fn=lambda: result)


def test_the_mixin_alone_is_no_module(path: Path) -> None:
    class Bare(FlashPackMixin):
        pass

    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        Bare().save_flashpack(path)


# Defaults of the class


class Choosy(nn.Module, FlashPackMixin):
    flashpack_ignore_names: ClassVar = ["skipped"]
    flashpack_ignore_prefixes: ClassVar = ["old."]
    flashpack_ignore_suffixes: ClassVar = [".tmp"]
    flashpack_coerce_dtype = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("scale", torch.zeros(2))


def test_class_attributes_are_defaults(path: Path) -> None:
    tensors = {"weight": torch.ones(2), "scale": torch.full((2,), 2.5).double()}
    ignored = {name: torch.ones(1) for name in ("skipped", "old.weight", "a.tmp")}
    flashpack.save_file({**tensors, **ignored}, path)
    loaded = Choosy.from_flashpack(path)
    assert loaded.weight.eq(1).all()
    assert_same({"": loaded.scale}, {"": torch.full((2,), 2.5)})


def test_arguments_override_class_attributes(path: Path) -> None:
    flashpack.save_file({"weight": torch.ones(2), "scale": torch.ones(2), "skipped": torch.ones(1)}, path)
    Choosy.from_flashpack(path)
    with pytest.raises(ValueError, match="skipped"):
        Choosy.from_flashpack(path, ignore_names=["something else"])


# Failure


def test_strictness_is_that_of_assign_from_file(path: Path) -> None:
    flashpack.save_file({"fc1.weight": torch.ones(3, 4)}, path)
    with pytest.raises(ValueError, match="Missing 3 parameters"):
        MyModule.from_flashpack(path)


def test_what_the_file_left_on_meta_is_warned_of(path: Path) -> None:
    flashpack.save_file({"fc1.weight": torch.ones(3, 4)}, path)
    with pytest.warns(UserWarning, match="3 tensor.*remain on the meta device") as caught:
        loaded = MyModule.from_flashpack(path, strict_params=False)
    assert "'norm.bias'" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert loaded.norm.bias.is_meta
    assert loaded.fc1.weight.eq(1).all()


def test_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MyModule.from_flashpack(tmp_path / "missing")
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    with pytest.raises(flashpack.FlashPackError):
        MyModule.from_flashpack(tmp_path / "junk")


def test_a_failed_initialiser_leaves_the_meta_context(packed: Path) -> None:
    def build() -> nn.Module:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        MyModule.from_flashpack(packed, init_fn=build)
    assert not nn.Linear(2, 2).weight.is_meta


# Building


class Tied(nn.Module, FlashPackMixin):
    """Ties its output to its embedding, as language models do."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if late:
            self.head.weight = self.embed.weight
        else:
            self.embed.weight = self.head.weight
        self.weights = nn.ParameterList([self.embed.weight, nn.Parameter(torch.randn(2))])


@pytest.mark.parametrize("late", [False, True])
def test_ties_made_in_the_initialiser_hold(late: bool, path: Path) -> None:
    model = Tied(late)
    model.save_flashpack(path)
    loaded = Tied.from_flashpack(path, late=late)
    assert loaded.head.weight is loaded.embed.weight is loaded.weights[0]
    assert_same(loaded.state_dict(), model.state_dict())
    assert len(list(loaded.parameters())) == 2


def test_parameters_take_no_memory_while_they_are_built(packed: Path) -> None:
    seen: list[bool] = []

    class Watching(MyModule):
        def __init__(self) -> None:
            super().__init__()
            seen.extend(parameter.is_meta for parameter in self.parameters())
            seen.append(self.positions.is_meta)

    Watching.from_flashpack(packed)
    assert seen == [True] * 4 + [False]


def test_initialisation_inside_the_constructor_works(path: Path) -> None:
    class Initialised(nn.Module, FlashPackMixin):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            nn.init.xavier_uniform_(self.fc.weight)
            self.apply(lambda module: getattr(module, "reset_parameters", lambda: None)())
            with torch.no_grad():
                self.fc.bias.zero_().add_(1)
            self.fc.half()

    flashpack.pack_to_file(Initialised(), path)
    loaded = Initialised.from_flashpack(path)
    assert loaded.fc.weight.dtype == torch.float16
    assert_same(loaded.state_dict(), flashpack.load_file(path))


def test_frozen_parameters_stay_frozen(path: Path) -> None:
    class Frozen(MyModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc1.requires_grad_(False)

    Frozen().save_flashpack(path)
    loaded = Frozen.from_flashpack(path)
    assert [loaded.fc1.weight.requires_grad, loaded.norm.weight.requires_grad] == [False, True]


def test_other_threads_build_real_models_meanwhile(packed: Path) -> None:
    inside, outside_done = threading.Event(), threading.Event()
    built: list[nn.Module] = []

    def other_thread() -> None:
        assert inside.wait(30)
        built.append(nn.Linear(2, 2))
        outside_done.set()

    class Slow(MyModule):
        def __init__(self) -> None:
            super().__init__()
            inside.set()
            assert outside_done.wait(30)
            self.late = nn.Parameter(torch.zeros(1))
            assert self.late.is_meta

    thread = threading.Thread(target=other_thread)
    thread.start()
    flashpack.save_file({**flashpack.load_file(packed), "late": torch.ones(1)}, packed)
    loaded = Slow.from_flashpack(packed)
    thread.join()
    assert not any(parameter.is_meta for parameter in built[0].parameters())
    assert loaded.late.item() == 1
    assert not nn.Linear(2, 2).weight.is_meta


def test_models_nest(path: Path) -> None:
    inner_path = path.with_name("inner.flashpack")
    inner = MyModule()
    inner.save_flashpack(inner_path)

    class Outer(nn.Module, FlashPackMixin):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MyModule.from_flashpack(inner_path)
            self.fc = nn.Linear(2, 2)

    source = nn.Module()
    source.inner, source.fc = inner, nn.Linear(2, 2)
    flashpack.pack_to_file(source, path)
    assert_same(Outer.from_flashpack(path).state_dict(), source.state_dict())


def test_explicit_nothing_overrides_class_attributes(path: Path) -> None:
    flashpack.save_file({"weight": torch.ones(2), "scale": torch.ones(2), "skipped": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="skipped"):
        Choosy.from_flashpack(path, ignore_names=[])
    Choosy.from_flashpack(path, ignore_names=None)
    flashpack.save_file({"weight": torch.ones(2), "scale": torch.ones(2).double()}, path)
    with pytest.raises(ValueError, match="scale"):
        Choosy.from_flashpack(path, coerce_dtype=False)
    Choosy.from_flashpack(path, coerce_dtype=None)
