"""The arguments of a constructor: kept in the file of a model with FlashPackMixin, used by from_flashpack."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
import upstream
from flashpack import FlashPackError, FlashPackMixin
from flashpack._files.plain import from_json, to_json
from flashpack._module.arguments import KEY
from helpers import assert_same
from torch import nn


class Sized(nn.Module, FlashPackMixin):
    """Cannot be built without arguments, and remembers all that it was built with."""

    def __init__(
        self, width: int, *rest: Any, bias: bool = True, dtype: torch.dtype | None = None, **more: Any
    ) -> None:
        super().__init__()
        self.seen = (width, rest, bias, dtype, more)
        self.fc = nn.Linear(width, 3, bias=bias, dtype=dtype)


class Choosing(nn.Module, FlashPackMixin):
    """Has an argument that no file keeps."""

    def __init__(self, width: int = 4, activation: Any = nn.ReLU) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 2)
        self.activation = activation


PLAIN: list[Any] = [
    *(None, True, -3, 10**40, 0.1, float("inf"), float("-inf"), "", "é\n\x00", [], (), {}),
    *([1, (2, [3, None])], {"a": {"$": 1}}, {1: "a", (2, 3): "b"}, {"$": "tuple", "of": 1}),
    *(OrderedDict(b=1, a=(2,)), Counter({3: 2}), torch.float16, torch.device("cuda", 1), torch.Size([2, 3])),
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    back = from_json(to_json(value, "value"), "file", {})
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_what_is_not_a_number_stays_so() -> None:
    assert repr(from_json(to_json([float("nan"), -0.0], "value"), "file", {})) == "[nan, -0.0]"


@pytest.mark.parametrize("value", [b"", {1, 2}, 1j, nn.ReLU(), torch.ones(1), [len]], ids=repr)
def test_what_is_not_plain_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^value.*not a plain value$"):
        to_json(value, "value")


def test_what_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="holds itself"):
        to_json(value, "value")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", '{"$":"code","of":"x"}', '{"$":1}', '{"$":"tensor","of":"x"}', "[" * 100_000),
        *(
            '{"$":"dtype","of":"load"}',
            '{"$":"dtype","of":"_inductor"}',
            '{"$":"dict","of":[[{},1]]}',
            '{"$":"device","of":"x y"}',
        ),
    ],
)
def test_text_of_others_is_refused(text: str) -> None:
    with pytest.raises(FlashPackError, match=r"^file: the file's metadata"):
        from_json(text, "file", {})


def test_a_model_needs_no_arguments(path: Path) -> None:
    options = {"deep": (1, {"a": [None, 2.5]}), "bias": False}
    model = Sized(5, "x", 7, dtype=torch.float64, **options)
    model.save_flashpack(path)
    loaded = Sized.from_flashpack(path)
    assert loaded.seen == (5, ("x", 7), False, torch.float64, {"deep": options["deep"]})
    assert_same(loaded.state_dict(), model.state_dict())
    assert_same(flashpack.load_file(path), model.state_dict())


def test_shards_and_new_saves_keep_them(tmp_path: Path) -> None:
    Sized(500).save_flashpack(tmp_path / "model.flashpack", max_shard_size=4000)
    assert len(list(tmp_path.glob("model-*"))) == 2
    loaded = Sized.from_flashpack(tmp_path)
    assert loaded.seen[0] == 500
    loaded.save_flashpack(tmp_path / "again.flashpack")
    assert Sized.from_flashpack(tmp_path / "again.flashpack").seen == loaded.seen


def test_defaults_are_those_of_the_save(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Choosing().save_flashpack(path)
    monkeypatch.setattr(Choosing.__init__, "__defaults__", (9, nn.ReLU))
    assert Choosing.from_flashpack(path).fc.in_features == 4


def test_what_the_caller_gives_counts(path: Path) -> None:
    Sized(5, "x", bias=True, color="red", size=2).save_flashpack(path)
    loaded = Sized.from_flashpack(path, size=3, dtype=torch.float32)
    assert loaded.seen == (5, ("x",), True, torch.float32, {"color": "red", "size": 3})
    assert Sized.from_flashpack(path, 5, "y").seen[1] == ("y",)


class Starred(nn.Module, FlashPackMixin):
    """Has an argument that no file keeps before its `*sizes`."""

    def __init__(self, activation: Any = nn.ReLU, *sizes: int, **options: Any) -> None:
        super().__init__()
        self.seen = (activation, sizes, options)
        self.fc = nn.Linear(2, 2)


class Demanding(Starred):
    def __init__(self, activation: Any, *sizes: int) -> None:
        super().__init__(activation, *sizes)


@pytest.mark.parametrize("sizes", [(), (2, 3, 4)])
@pytest.mark.parametrize("options", [{}, {"z": 1}])
def test_sizes_after_an_argument_that_is_not_kept(
    sizes: tuple[int, ...], options: dict[str, int], path: Path
) -> None:
    Starred(nn.ReLU, *sizes, **options).save_flashpack(path)
    with pytest.warns(UserWarning, match="'activation'"):
        assert Starred.from_flashpack(path).seen == (nn.ReLU, sizes, options)
    assert Starred.from_flashpack(path, nn.GELU).seen == (nn.GELU, sizes, options)
    assert Starred.from_flashpack(path, activation=nn.GELU).seen == (nn.GELU, sizes, options)
    Starred().save_flashpack(path)
    assert Starred.from_flashpack(path).seen == (nn.ReLU, (), {})


def test_sizes_after_an_argument_that_has_no_default(path: Path) -> None:
    Demanding(nn.ReLU, 2, 3).save_flashpack(path)
    with pytest.warns(UserWarning, match="'activation'"), pytest.raises(TypeError, match="activation"):
        Demanding.from_flashpack(path)
    assert Demanding.from_flashpack(path, nn.ReLU).seen == (nn.ReLU, (2, 3), {})


def test_what_changes_later_is_not_kept(path: Path) -> None:
    given = [1]
    model = Sized(4, given)
    given.append(2)
    model.save_flashpack(path)
    assert Sized.from_flashpack(path).seen[1] == ([1],)


def test_what_could_not_be_kept_is_named(path: Path) -> None:
    Choosing(6, nn.GELU).save_flashpack(path)
    with pytest.warns(UserWarning, match=r"could not keep the argument 'activation', of type: pass it"):
        assert Choosing.from_flashpack(path).fc.in_features == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Choosing.from_flashpack(path, activation=nn.GELU).activation is nn.GELU


def test_what_the_constructor_does_not_take_is_left_out(path: Path) -> None:
    Choosing(6).save_flashpack(path)

    class Fixed(Choosing):
        def __init__(self) -> None:
            super().__init__(6)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Fixed.from_flashpack(path).fc.in_features == 6


def test_where_a_model_was_is_not_kept(path: Path) -> None:
    class Placed(nn.Module, FlashPackMixin):
        def __init__(self, width: int, device: str = "cpu", rank: int | None = None) -> None:
            super().__init__()
            self.seen = (device, rank)
            self.fc = nn.Linear(width, 1)

    Placed(3, "cpu:0", 5).save_flashpack(path)
    assert Placed.from_flashpack(path).seen == ("cpu", None)


def test_other_builders_get_none(path: Path) -> None:
    Sized(5).save_flashpack(path)
    assert Sized.from_flashpack(path, init_fn=lambda: Sized(5, "other")).seen[1] == ("other",)


def test_a_class_may_keep_none(path: Path) -> None:
    class Silent(Sized):
        flashpack_keep_arguments = False

    Silent(5, "secret").save_flashpack(path)
    assert b"secret" not in path.read_bytes()
    with pytest.raises(TypeError, match="width"):
        Silent.from_flashpack(path)


def test_files_without_arguments_load_as_ever(path: Path) -> None:
    flashpack.pack_to_file(Sized(5), path)
    assert Sized.from_flashpack(path, 5).seen[0] == 5
    with pytest.raises(TypeError, match="width"):
        Sized.from_flashpack(path)


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"kept":[]}', '{"kept":{"width":{"$":"x","of":1}}}'])
def test_damaged_arguments_are_refused(text: str, path: Path) -> None:
    flashpack.save_file(Sized(5).state_dict(), path, {KEY: text})
    with pytest.raises(FlashPackError, match="metadata"):
        Sized.from_flashpack(path)


def test_signatures_copies_and_pickles_are_as_ever() -> None:
    assert list(inspect.signature(Sized).parameters) == ["width", "rest", "bias", "dtype", "more"]
    with pytest.raises(TypeError, match="width"):
        Sized()
    model = Sized(4, "x")
    assert list(inspect.signature(model).parameters) == ["args", "kwargs"]
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert other.seen == model.seen
        assert other._flashpack_arguments == model._flashpack_arguments


def test_a_class_with_a_new_of_its_own_gets_the_arguments() -> None:
    class Counted:
        made: list[Any] = []  # noqa: RUF012

        def __new__(cls, *args: Any, **_: Any) -> Any:
            cls.made.append(args)
            return object.__new__(cls)

    class Both(nn.Module, FlashPackMixin, Counted):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width = width

    Both(3)
    assert Counted.made == [(3,)]


THERE = """
import sys, torch
from flashpack import FlashPackMixin
class Choosing(torch.nn.Module, FlashPackMixin):
    def __init__(self, width=4):
        super().__init__()
        self.fc = torch.nn.Linear(width, 2)
total = Choosing.from_flashpack(sys.argv[1], width=6, device="cpu", silent=True).fc.weight.sum().item()
Choosing(7).save_flashpack(sys.argv[2], target_dtype=torch.float32)
print(f"\\n{total}")
"""


def test_files_go_both_ways_between_this_and_the_release(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.flashpack", tmp_path / "theirs.flashpack"
    model = Choosing(6)
    model.save_flashpack(ours)
    seen = upstream.run(upstream.install(), THERE, ours, theirs).splitlines()[-1]
    assert float(seen) == model.fc.weight.sum().item()
    assert Choosing.from_flashpack(theirs, width=7).fc.in_features == 7
