"""Makes a TorchScript module that fetches its own weights, and the FlashPack file it fetches them from.

    python examples/torchscript.py FOLDER

The module holds no weights to speak of: `load(path)` assigns the file's to its parameters, on the CPU or on
the GPU it was moved to. examples/cpp runs it without Python.
"""

from __future__ import annotations

import sys
from pathlib import Path

import flashpack
import flashpack.ops  # registers torch.ops.flashpack, which the script refers to
import torch
from torch import Tensor, nn


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(8, 16)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(x)))

    @torch.jit.export
    def load(self, path: str) -> None:
        torch.ops.flashpack.assign(
            path,
            ["hidden.weight", "hidden.bias", "out.weight", "out.bias"],
            [self.hidden.weight, self.hidden.bias, self.out.weight, self.out.bias],
        )


def main(folder: Path) -> None:
    torch.manual_seed(0)
    trained, empty = Perceptron(), Perceptron()
    flashpack.pack_to_file(trained, folder / "model.flashpack")
    torch.jit.script(empty).save(str(folder / "model.pt"))

    module = torch.jit.load(str(folder / "model.pt"))
    module.load(str(folder / "model.flashpack"))
    x = torch.ones(1, 8)
    if not torch.equal(module(x), trained(x)):
        raise SystemExit("the loaded module computes something else")
    print(" ".join(f"{value:.6f}" for value in module(x).flatten().tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
