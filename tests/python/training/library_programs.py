"""What the tests of `test_other_libraries` run, each in a process of its own and in an empty folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flashpack
import pytest
import torch
from helpers import assert_same
from torch import Tensor, nn

IMAGE = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)


@torch.no_grad()
def outputs(model: nn.Module, *inputs: Any) -> Tensor:
    out: Tensor = model.eval()(*inputs)
    return out


def timm() -> None:
    import timm

    model = timm.create_model("resnet10t", num_classes=7)
    for each in model.buffers():
        if each.is_floating_point():
            each.uniform_(0.5, 1.5)
    flashpack.pack_to_file(model, "resnet.flashpack")

    filled = timm.create_model("resnet10t", num_classes=7)
    flashpack.assign_from_file(filled, "resnet.flashpack")
    tensors = flashpack.load_file("resnet.flashpack")
    through = timm.create_model(
        "resnet10t",
        num_classes=7,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": tensors, "num_classes": 7},
    )
    for loaded in (filled, through):
        assert_same(loaded.state_dict(), model.state_dict())
        assert torch.equal(outputs(loaded, IMAGE), outputs(model, IMAGE))
    # Another head and other channels: what timm adapts as it loads.
    other = timm.create_model(
        "resnet10t",
        num_classes=2,
        in_chans=1,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": flashpack.load_file("resnet.flashpack"), "num_classes": 7},
    )
    assert other.conv1[0].weight.shape[1] == 1
    assert torch.equal(other.layer1[0].conv1.weight, model.layer1[0].conv1.weight)


def open_clip() -> None:
    import open_clip

    tiny = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    }
    Path("tiny.json").write_text(json.dumps(tiny))
    open_clip.add_model_config("tiny.json")
    model = open_clip.create_model("tiny")
    flashpack.pack_to_file(model, "clip.flashpack")
    loaded = open_clip.create_model("tiny")
    flashpack.assign_from_file(loaded, "clip.flashpack")
    assert_same(loaded.state_dict(), model.state_dict())
    with torch.no_grad():
        for one, other in zip(
            loaded(IMAGE, torch.ones(1, 8).long()), model(IMAGE, torch.ones(1, 8).long()), strict=True
        ):
            assert torch.equal(one, other)
    flashpack.commands.revert_from_flashpack("clip.flashpack", "clip.safetensors")
    theirs = open_clip.create_model("tiny", pretrained="clip.safetensors")
    assert_same(theirs.state_dict(), model.state_dict())


HUBCONF = """
dependencies = ["torch", "flashpack"]
import flashpack, torch

def tiny(pretrained=True, width=4):
    model = torch.nn.Linear(width, 2)
    if pretrained:
        flashpack.assign_from_file(model, WEIGHTS)
    return model
"""


def torch_hub() -> None:
    model = nn.Linear(4, 2)
    flashpack.pack_to_file(model, "tiny.flashpack")
    Path("repository").mkdir()
    weights = repr(str(Path("tiny.flashpack").resolve()))
    Path("repository/hubconf.py").write_text(HUBCONF.replace("WEIGHTS", weights))
    loaded = torch.hub.load("repository", "tiny", source="local")
    assert_same(loaded.state_dict(), model.state_dict())
    assert torch.hub.load("repository", "tiny", source="local", pretrained=False, width=3).in_features == 3


def lightning() -> None:
    import pytorch_lightning as pl
    from flashpack.integrations.lightning import FlashPackCheckpointIO, load_from_checkpoint
    from torch.utils.data import DataLoader

    class Module(pl.LightningModule):
        def __init__(self, width: int, activation: str = "relu") -> None:  # noqa: ARG002 (kept by Lightning)
            super().__init__()
            self.save_hyperparameters()
            self.layers = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.2), nn.Linear(8, 1))

        def training_step(self, batch: Tensor) -> Tensor:
            loss = self.layers(batch).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.5)]

    data = DataLoader(torch.linspace(-1, 1, 64).reshape(16, 4), batch_size=4)

    def train(module: Any, epochs: int, packed: bool, resume: str | None = None) -> pl.Trainer:
        pl.seed_everything(epochs, verbose=False)
        keep = pl.callbacks.ModelCheckpoint("packed" if packed else "plain", monitor="loss", save_last=True)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[keep],
            plugins=[FlashPackCheckpointIO()] if packed else [],
        )
        trainer.fit(module, data, ckpt_path=resume)
        return trainer

    def module() -> Any:
        torch.manual_seed(1)
        return Module(4, activation="gelu")

    whole, plain = module(), module()
    train(whole, 2, packed=True)
    train(plain, 2, packed=False)
    assert flashpack.is_flashpack_file("packed/last.ckpt")
    assert_same(whole.state_dict(), plain.state_dict())

    # Values whose bytes look like the end of a zip file, as torch's checkpoints are.
    like_zip = torch.tensor([*b"PK\5\6", *bytes(18)], dtype=torch.uint8)
    FlashPackCheckpointIO().save_checkpoint({"values": like_zip}, "like_zip.ckpt")
    assert torch.equal(FlashPackCheckpointIO().load_checkpoint("like_zip.ckpt")["values"], like_zip)

    resumed = {}
    for name, packed in (("packed", True), ("plain", False)):
        resumed[name] = module()
        trainer = train(resumed[name], 4, packed, resume=f"{name}/last.ckpt")
        assert trainer.global_step == 16
        trainer.save_checkpoint(f"{name}/end.ckpt")
    assert_same(resumed["packed"].state_dict(), resumed["plain"].state_dict())
    ours, theirs = (
        flashpack.load_checkpoint("packed/end.ckpt"),
        torch.load("plain/end.ckpt", weights_only=False),
    )
    assert ours.keys() == theirs.keys()
    assert ours["loops"] == theirs["loops"]
    assert ours["hyper_parameters"] == dict(theirs["hyper_parameters"])

    loaded = load_from_checkpoint(Module, "packed/end.ckpt")
    assert loaded.hparams.activation == "gelu"
    assert_same(
        loaded.state_dict(), Module.load_from_checkpoint("plain/end.ckpt", weights_only=False).state_dict()
    )
    assert load_from_checkpoint(Module, "packed/end.ckpt", activation="silu").hparams.activation == "silu"
    # Checkpoints of before go on with the plugin.
    assert train(module(), 4, packed=True, resume="plain/last.ckpt").global_step == 16
    with pytest.raises(TypeError, match="storage_options"):
        FlashPackCheckpointIO().save_checkpoint({}, "x", storage_options={})
    FlashPackCheckpointIO().remove_checkpoint("packed/end.ckpt")
    assert not Path("packed/end.ckpt").exists()
