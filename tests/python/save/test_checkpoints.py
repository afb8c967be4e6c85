"""save_checkpoint and load_checkpoint: a training that is resumed goes on as if it had not stopped."""

from __future__ import annotations

import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from flashpack import FlashPackError
from flashpack._core.constants import CHECKPOINT_KEY as KEY
from helpers import assert_same, bits, flip_byte
from torch import Tensor, nn


def assert_equal(one: Any, other: Any) -> None:
    """Same values of same types, tensors bit for bit."""
    if isinstance(one, Tensor):
        assert isinstance(other, Tensor)
        assert (one.dtype, one.shape, bits(one.detach())) == (other.dtype, other.shape, bits(other))
        return
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert repr(one) == repr(other)


class Training:
    """A small training with all that has a state."""

    def __init__(self, optimizer: type[torch.optim.Optimizer], seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 2))
        groups = [{"params": self.model[0].parameters(), "lr": 0.02}, {"params": self.model[3].parameters()}]
        self.optimizer = optimizer(groups, lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 5], 0.5)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        self.step = 0

    def run(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.model(torch.randn(8, 6) + random.random()).square().mean()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            self.step += 1
            losses.append(loss.item())
        return losses

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": {"torch": torch.get_rng_state(), "python": random.getstate()},
            "step": self.step,
        }

    def resume(self, state: dict[str, Any]) -> None:
        for name in ("model", "optimizer", "scheduler", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"]["torch"])
        random.setstate(state["rng"]["python"])
        self.step = state["step"]


@pytest.mark.parametrize("eager", [None, True])
@pytest.mark.parametrize(
    "optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adafactor]
)
def test_a_training_is_resumed_bit_for_bit(
    optimizer: type[torch.optim.Optimizer], eager: bool | None, path: Path
) -> None:
    training = Training(optimizer, 1)
    training.run(3)
    saved = training.state()
    flashpack.save_checkpoint(saved, path)
    expected = training.run(4)

    state = flashpack.load_checkpoint(path, eager=eager)
    resumed = Training(optimizer, 2)
    resumed.resume(state)
    assert resumed.run(4) == expected
    assert resumed.step == 7
    assert_equal(training.state(), resumed.state())


def test_everything_comes_back_with_its_type(tmp_path: Path) -> None:
    weight = torch.randn(3, 2)
    state = {
        "a": {"b": torch.ones(1), 7: [torch.zeros(2, dtype=torch.bfloat16), None]},
        "a.b": torch.full((1,), 2),
        3: (True, {"lr": 1e-3, "betas": (0.9, 0.999)}),
        "tied": [weight, weight, weight.t()],
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(5),
        "ordered": OrderedDict(x=torch.ones(2, dtype=torch.complex64), _extra_state=torch.ones(1)),
    }
    for options in ({}, {"max_shard_size": 40}, {"checksum": "blake3"}):
        flashpack.save_checkpoint(state, tmp_path / "state.flashpack", **options)  # type: ignore[arg-type]
        back = flashpack.load_checkpoint(tmp_path / "state.flashpack")
        assert_equal(state, back)
    assert back["tied"][0].data_ptr() == back["tied"][1].data_ptr()
    back["tied"][0].add_(1)  # writable, and the file keeps its own
    assert_equal(state, flashpack.load_checkpoint(tmp_path / "state.flashpack"))


def test_versions_of_modules_come_back(path: Path) -> None:
    state = nn.BatchNorm1d(3).state_dict()
    flashpack.save_checkpoint(state, path)
    back = flashpack.load_checkpoint(path)
    assert back._metadata == state._metadata
    assert_equal(state, back)


def test_its_tensors_are_tensors_of_the_file(path: Path) -> None:
    training = Training(torch.optim.AdamW, 1)
    training.run(1)
    flashpack.save_checkpoint(training.state(), path)
    names = flashpack.open(path).keys()
    assert "optimizer.state.0.exp_avg" in names
    part = flashpack.load_file(path, include=["model"])
    weights = {name.removeprefix("model."): tensor for name, tensor in part.items()}
    assert_same(weights, training.model.state_dict())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"x", r"state\['a'\]\[1\]: is of builtins\.bytes, not a tensor or a plain value"),
        (nn.ReLU(), r"state\['a'\]\[1\]: is of torch\.nn\.modules\.activation\.ReLU"),
        (torch.ones(2).numpy(), r"state\['a'\]\[1\]: is of numpy\.ndarray"),
        ({torch.ones(1): 1}, r"a key of state\['a'\]\[1\]: is of torch\.Tensor"),
        (torch.ones(2, device="meta"), "'a.1' cannot be packed: it is on the meta device"),
        (torch.ones(2).to_sparse(), "'a.1' cannot be packed: its layout"),
    ],
)
def test_what_is_neither_is_refused(value: Any, message: str, path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        flashpack.save_checkpoint({"a": [torch.ones(1), value]}, path)
    assert not path.exists()


def test_a_state_without_tensors_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="state holds no tensor"):
        flashpack.save_checkpoint({"step": 3}, path)


def test_other_files_are_refused(path: Path) -> None:
    flashpack.save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"holds no checkpoint, only tensors: load them with load_file"):
        flashpack.load_checkpoint(path)
    flashpack.save_file({"a": torch.ones(1)}, path, {KEY: '{"$":"tensor","of":"b"}'})
    with pytest.raises(FlashPackError, match="tell of a tensor 'b' that it lacks: load_file"):
        flashpack.load_checkpoint(path)


def test_damage_is_noticed(path: Path) -> None:
    flashpack.save_checkpoint({"a": torch.ones(1000)}, path)
    flip_byte(path, 100)
    with pytest.raises(flashpack.ChecksumError, match=r'of \["a"\]'):
        flashpack.load_checkpoint(path, eager=True)
