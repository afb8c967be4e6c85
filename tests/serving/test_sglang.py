"""SGLang's loader with --load-format flashpack, on the CPU: run by `make sglang`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from served_models import save

HERE = Path(__file__).parent


# What SGLang's kernels, which its import loads, want of the CUDA driver.
DRIVER_FUNCTIONS = [
    *(
        "cuCtxFromGreenCtx",
        "cuCtxPopCurrent",
        "cuCtxPopCurrent_v2",
        "cuCtxPushCurrent",
        "cuCtxPushCurrent_v2",
    ),
    *("cuDevResourceGenerateDesc", "cuDevSmResourceSplitByCount", "cuDeviceGetDevResource"),
    *("cuDriverGetVersion", "cuGetErrorString", "cuGetProcAddress", "cuGetProcAddress_v2"),
    *("cuGreenCtxCreate", "cuGreenCtxDestroy", "cuGreenCtxGetDevResource"),
    *("cuPointerGetAttribute", "cuStreamCreate"),
]
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CUDA driver that has no device."""
    folder = tmp_path_factory.mktemp("driver")
    source, name = folder / "driver.c", "libcuda.so.1"
    source.write_text("".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in DRIVER_FUNCTIONS))
    command = ["cc", "-w", "-shared", "-fPIC", source, f"-Wl,-soname,{name}", "-o", folder / name]
    subprocess.run(command, check=True)
    return folder


@pytest.mark.parametrize("name", ["llama", "tied llama", "qwen3"])
def test_parameters_are_those_of_safetensors(name: str, driver: Path, tmp_path: Path) -> None:
    checkpoint = save(name, tmp_path, max_shard_size=500_000)
    command = [sys.executable, HERE / "sglang_loads.py", checkpoint.safetensors, checkpoint.flashpack]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    assert re.findall(r"^\w+Loader$", done.stdout, re.MULTILINE) == [
        "DefaultModelLoader",
        "FlashPackModelLoader",
        "FlashPackModelLoader",
    ]
    counts = [int(count) for count in re.findall(r"same parameters: (\d+)", done.stdout)]
    assert len(counts) == 2
    assert counts[0] == counts[1] > 100_000
