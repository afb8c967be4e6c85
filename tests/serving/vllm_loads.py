"""vLLM's own way to load a model, in this process or, as a program, in one of several ranks.

    python vllm_loads.py RANK TENSOR_PARALLEL PIPELINE_PARALLEL PORT SAFETENSORS_FOLDER FLASHPACK_FOLDER

The program loads both and compares this rank's parameters.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# vLLM's wheel for CUDA loads models where there is none, but has no kernels to run them there.
os.environ["VLLM_TARGET_DEVICE"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model_loader


def configuration(folder: Path, load_format: str, **options: Any) -> VllmConfig:
    """As `vllm serve` makes it of its arguments, which loads the plugins."""
    arguments = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 64, "skip_tokenizer_init": True}
    return EngineArgs(
        model=str(folder), load_format=load_format, **arguments, **options
    ).create_engine_config()


def load(config: VllmConfig) -> nn.Module:
    """The model, by the loader that vLLM has for the load format."""
    with set_current_vllm_config(config):
        loader = get_model_loader(config.load_config)
        return loader.load_model(vllm_config=config, model_config=config.model_config)


def join(config: VllmConfig, port: int, rank: int = 0, tensor: int = 1, pipeline: int = 1) -> None:
    """Make the process groups that models are built in."""
    with set_current_vllm_config(config):
        init_distributed_environment(tensor * pipeline, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
        initialize_model_parallel(tensor, pipeline)


def assert_same_parameters(model: nn.Module, expected: nn.Module) -> int:
    """Both have the same parameters, bit for bit; returns how many elements that are."""
    own, theirs = dict(model.named_parameters()), dict(expected.named_parameters())
    assert own.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert (own[name].dtype, own[name].shape) == (parameter.dtype, parameter.shape), name
        assert torch.equal(own[name].view(torch.uint8), parameter.view(torch.uint8)), name
    return sum(parameter.numel() for parameter in own.values())


def main() -> None:
    rank, tensor, pipeline, port = map(int, sys.argv[1:5])
    ranks = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    ranks["distributed_executor_backend"] = "mp"
    theirs = configuration(Path(sys.argv[5]), "safetensors", **ranks)
    join(theirs, port, rank, tensor, pipeline)
    expected = load(theirs)
    counts = []
    for options in ({}, {"mapped": False}):
        ours = configuration(Path(sys.argv[6]), "flashpack", model_loader_extra_config=options, **ranks)
        counts.append(assert_same_parameters(load(ours), expected))
    print("same parameters:", *counts, flush=True)


if __name__ == "__main__":
    main()
