"""Compiles a module ahead of time, without its weights, and gives it those of a FlashPack file.

    python examples/aotinductor.py FOLDER

The package holds code alone: other weights need no other compilation. On the CPU it computes with the mapped
file itself, nothing is copied. AOTInductor needs a C++ compiler, and compiles vectors of up to eight elements
into the code: a module that has such weights cannot exchange them, which `give_weights` refuses.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import flashpack
import torch
from torch import Tensor, nn


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(8, 256)
        self.out = nn.Linear(256, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(x)))


def compile_without_weights(module: nn.Module, x: Tensor, package: Path) -> None:
    exported = torch.export.export(module, (x,))
    options = {"aot_inductor.package_constants_in_so": False}
    torch._inductor.aoti_compile_and_package(exported, package_path=str(package), inductor_configs=options)


def give_weights(compiled: Any, weights: Path) -> None:
    tensors = flashpack.load_file(weights)
    fixed = tensors.keys() - set(compiled.get_constant_fqns())
    if fixed:
        raise SystemExit(f"the package has weights compiled in: {sorted(fixed)}")
    compiled.load_constants(tensors, check_full_update=True, user_managed=True)
    compiled.weights = tensors  # it holds their addresses alone


def main(folder: Path) -> None:
    torch.manual_seed(0)
    x = torch.ones(1, 8)
    package = folder / "perceptron.pt2"
    compile_without_weights(Perceptron(), x, package)
    compiled = torch._inductor.aoti_load_package(str(package))

    for step in ("first", "second"):
        trained = Perceptron()
        weights = folder / f"{step}.flashpack"
        flashpack.pack_to_file(trained, weights)
        give_weights(compiled, weights)
        if not torch.allclose(compiled(x), trained(x), atol=1e-6):
            raise SystemExit(f"with the {step} weights the package computes something else")
        print(step, " ".join(f"{value:.4f}" for value in compiled(x).flatten()[:4].tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
