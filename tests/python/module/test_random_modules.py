"""Into any module, a load gives what load_state_dict gives: values, ties, shared memory, names left over."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_modules import Builder
from torch import Tensor, nn

# On a machine of any speed. Derandomized: where tied records differ and their module has several names,
# another record than torch's may win.
PROPERTY = settings(
    deadline=None, max_examples=300, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def every_tensor(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, tied ones under each of their names."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach() for name, tensor in named}


def differing(ones: dict[str, Tensor], others: dict[str, Tensor]) -> list[str]:
    assert ones.keys() == others.keys()
    return [
        name for name, one in ones.items() if one.dtype != others[name].dtype or not one.equal(others[name])
    ]


@PROPERTY
@given(
    seed=st.integers(0, 1 << 32),
    lacking=st.sampled_from([0.0, 0.1, 0.3]),
    extra=st.booleans(),
    in_place=st.booleans(),
    eager=st.sampled_from([None, True]),
)
@pytest.mark.filterwarnings("ignore:flashpack. .*the last one is taken")
def test_a_load_is_that_of_load_state_dict(
    seed: int, lacking: float, extra: bool, in_place: bool, eager: bool | None
) -> None:
    source = Builder(seed, 1).module(3)
    state: dict[str, Any] = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    chance = random.Random(seed)
    state = {name: tensor for name, tensor in state.items() if chance.random() >= lacking}
    state |= {"unknown.name": torch.ones(2)} if extra else {}
    assume(state)
    builder = Builder(seed, 2)
    loaded, expected = builder.module(3), Builder(seed, 2).module(3)
    keys = expected.load_state_dict(state, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.flashpack")
        flashpack.save_file(dict(chance.sample(sorted(state.items()), len(state))), path)
        options: dict[str, Any] = {"strict": False, "dtype": "model", "coerce_dtype": True, "eager": eager}
        try:
            told = flashpack.assign_from_file(loaded, path, in_place=in_place, **options)
        except ValueError as error:  # what in_place=True does not do
            assert in_place and builder.shares_in_part and "share memory in part" in str(error)
            return
    ones, others = every_tensor(loaded), every_tensor(expected)
    assert not differing(ones, others)
    for number, name in enumerate(ones):
        for tensors in (ones, others):
            tensors[name].fill_(number % 100)
        assert not differing(ones, others), f"{name} was written to"
    assert sorted(told.unexpected_keys) == sorted(keys.unexpected_keys)
    assert set(told.missing_keys) <= set(keys.missing_keys)  # without what is tied to what is there
