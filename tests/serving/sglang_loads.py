"""SGLang's own way to load a model, on the CPU, from safetensors and from FlashPack; compares the parameters.

python sglang_loads.py SAFETENSORS_FOLDER FLASHPACK_FOLDER
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ |= {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}

import torch
from sglang.srt.configs.device_config import DeviceConfig
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader import get_model_loader
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs, prepare_server_args, set_global_server_args_for_scheduler
from sglang.test.layer_ut_utils import init_single_process_dist
from torch import nn


def load(folder: str, load_format: str, *, extra: str = "{}") -> nn.Module:
    """The model, by the loader that SGLang has for the load format as its command line takes it."""
    command = ["--model-path", folder, "--load-format", load_format, "--model-loader-extra-config", extra]
    command += ["--device", "cpu", "--dtype", "bfloat16", "--mem-fraction-static", "0.1"]
    arguments: ServerArgs = prepare_server_args(command)
    set_global_server_args_for_scheduler(arguments)
    init_single_process_dist()
    model_config = ModelConfig.from_server_args(arguments)
    load_config = LoadConfig(load_format=load_format, model_loader_extra_config=extra)
    loader = get_model_loader(load_config, model_config)
    print(type(loader).__name__, flush=True)
    model: Any = loader.load_model(model_config=model_config, device_config=DeviceConfig("cpu"))
    return model


def main() -> None:
    load_plugins()
    expected = dict(load(sys.argv[1], "safetensors").named_parameters())
    for extra in ("{}", '{"mapped": false}'):
        own = dict(load(sys.argv[2], "flashpack", extra=extra).named_parameters())
        assert own.keys() == expected.keys()
        for name, parameter in expected.items():
            assert (own[name].dtype, own[name].shape) == (parameter.dtype, parameter.shape), name
            assert torch.equal(own[name].view(torch.uint8), parameter.view(torch.uint8)), name
        print("same parameters:", sum(parameter.numel() for parameter in own.values()), flush=True)


if __name__ == "__main__":
    main()
