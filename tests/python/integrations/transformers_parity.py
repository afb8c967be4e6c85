"""Compares loads of FlashPack folders with transformers' own of safetensors, over its architectures.

As a program (`make parity`) it takes every architecture but those of `EXCLUDED`, or those named, a quarter of
an hour of one core in all:

- a model of single precision with each of `DTYPES`, one of half precision with `HALF_DTYPES`;
- the base out of the file of each head, and each head out of the base's, with what is reported.

What `KNOWN` names may differ. The program fails if anything else does, if a class that is not excluded cannot
be built, or if it compares fewer than `FEWEST` of all architectures.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import parity
import torch
import transformers
from flashpack.commands import convert_to_flashpack
from flashpack.integrations.transformers import load_model, save_model
from parity import Difference
from tiny_architectures import base_class, built, config_of, head_classes
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers_exceptions import DTYPES_LOST, EXCLUDED, KNOWN

DTYPES = (None, torch.float16, torch.bfloat16)
HALF_DTYPES = (None, torch.float32)
FEWEST = 400
LARGEST = 16_000_000  # parameters


def seeded(load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What it loads, fresh weights and all, as it comes after one seed."""
    torch.manual_seed(0)
    return load(*arguments, **options)


def differences(actual: PreTrainedModel, expected: PreTrainedModel) -> Iterator[Difference]:
    """What sets the models apart: tensors, ties, the mode, the configured dtype.

    What the class freezes is to be frozen, though `from_pretrained` forgets that; and tensors that it leaves
    without data are no measure.
    """
    for name in frozen(type(expected)):
        expected.get_parameter(name).requires_grad_(False)
    absent = {name for name, tensor in parity.named_tensors(expected).items() if tensor.is_meta}
    yield from (each for each in parity.differences(actual, expected) if each[0] not in absent)
    if str(actual.config.dtype) != str(expected.config.dtype):
        yield "config.dtype", actual.config.dtype, expected.config.dtype


@functools.cache
def frozen(kind: type[PreTrainedModel]) -> list[str]:
    """The parameters that the class does not train, of its tiny model."""
    with torch.device("meta"):
        model = kind(config_of(kind.config_class.model_type))
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def saved(model: PreTrainedModel, folder: Path) -> dict[str, Path]:
    """Folders of the model: safetensors, FlashPack, and FlashPack that was converted from safetensors."""
    folders = {name: folder / name for name in ("safetensors", "packed", "converted")}
    model.save_pretrained(folders["safetensors"])
    save_model(model, folders["packed"])
    shutil.copytree(folders["safetensors"], folders["converted"])
    convert_to_flashpack(folders["converted"])
    return folders


def compare_dtypes(
    kind: type[PreTrainedModel], config: Any, folder: Path, own: torch.dtype, dtypes: Sequence[Any]
) -> Iterator[Difference]:
    """What differs when a model of `kind` whose dtype is `own` loads with each of `dtypes`."""
    built(kind, config).save_pretrained(folder / "first")
    folders = saved(kind.from_pretrained(folder / "first", dtype=own), folder)
    for dtype in dtypes:
        if kind.config_class.model_type in DTYPES_LOST and dtype in (None, "auto"):
            continue
        expected = seeded(kind.from_pretrained, folders["safetensors"], dtype=dtype)
        for name in ("packed", "converted"):
            actual = seeded(load_model, kind, folders[name], dtype=dtype)
            for difference in differences(actual, expected):
                yield own, dtype, name, *difference


def compare_classes(
    stored: type[PreTrainedModel], loaded: type[PreTrainedModel], config: Any, folder: Path
) -> Iterator[Difference]:
    """What differs when a file of one class loads into another of its family, reports included.

    `save_model` stores a model's own names, and reports tell those of the file.
    """
    model = built(stored, config)
    folders = saved(model, folder)
    expected, wanted = seeded(loaded.from_pretrained, folders["safetensors"], output_loading_info=True)
    for name in ("converted", "packed"):
        if f"{stored.__name__} {loaded.__name__} {name}" in listed(KNOWN):
            continue
        actual, info = seeded(load_model, loaded, folders[name], output_loading_info=True)
        found = [*differences(actual, expected), *report_differences(info, wanted)]
        if found and found == [*report_differences(info, wanted)] and name == "packed":
            model.save_pretrained(folder / "own", save_original_format=False)
            _, wanted = loaded.from_pretrained(folder / "own", output_loading_info=True)
            found = [*report_differences(info, wanted)]
        for difference in found:
            yield stored.__name__, loaded.__name__, name, *difference


def report_differences(info: dict[str, Any], wanted: dict[str, Any]) -> Iterator[Difference]:
    """What sets apart the names that two loads report."""
    for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if set(info[keys]) != set(wanted[keys]):
            yield (
                keys,
                sorted(set(info[keys]) - set(wanted[keys])),
                sorted(set(wanted[keys]) - set(info[keys])),
            )


def compare(model_type: str, folder: Path) -> Iterator[Difference]:
    """Everything that differs for an architecture, its base and heads out of each other's files included."""
    config, base = config_of(model_type), base_class(model_type)
    for own, dtypes in ((torch.float32, DTYPES), (torch.bfloat16, HALF_DTYPES)):
        yield from caught(compare_dtypes(base, config, folder / str(own), own, dtypes), own)
    for head in heads_of(model_type):
        for stored, loaded in ((head, base), (base, head)):
            names = stored.__name__, loaded.__name__
            yield from caught(compare_classes(stored, loaded, config, folder / "-".join(names)), *names)


def heads_of(model_type: str) -> list[type[PreTrainedModel]]:
    """The heads of an architecture that are not excluded."""
    return [head for head in head_classes(model_type) if head.__name__ not in listed(EXCLUDED)]


def listed(table: dict[str, list[str]]) -> set[str]:
    """What the table names, whatever the reason."""
    return {name for names in table.values() for name in names}


def caught(steps: Iterator[Difference], *step: Any) -> Iterator[Difference]:
    """Differences, of which an exception is one."""
    try:
        yield from steps
    except Exception as error:  # noqa: BLE001 (of either library, and the others are to be compared)
        yield *step, "raised", type(error).__name__, str(error)[:300]


def obstacle(model_type: str) -> str | None:
    """Why the architecture or one of its heads cannot be built tiny, if so."""
    kind: Any = model_type
    try:
        config = config_of(model_type)
        for kind in (base_class(model_type), *heads_of(model_type)):
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in kind(config).parameters())
            if size > LARGEST:
                return f"{kind.__name__} has {size} parameters"
    except Exception as error:  # noqa: BLE001 (whatever a configuration or constructor raises)
        return f"{getattr(kind, '__name__', kind)}: {type(error).__name__} {str(error)[:300]}"
    return None


def examine(model_type: str) -> tuple[str | None, list[str]]:
    """Why it cannot be built, and what differs if it can."""
    reason = obstacle(model_type)
    if reason is not None:
        return reason, []
    with tempfile.TemporaryDirectory() as folder:
        return None, [" ".join(map(str, each)) for each in compare(model_type, Path(folder))]


def quiet() -> None:
    """Settings of a process that compares: memory that nobody initializes holds the same values each time."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)


def main(names: list[str], processes: int) -> int:
    chosen = names or sorted(MODEL_MAPPING_NAMES.keys() - listed(EXCLUDED))
    unbuilt = differing = 0
    with ProcessPoolExecutor(processes, initializer=quiet) as pool:
        for model_type, (reason, found) in zip(chosen, pool.map(examine, chosen), strict=True):
            unbuilt += reason is not None
            differing += bool(found)
            for line in [f"cannot be built: {reason}"] if reason else found:
                print(model_type, line, flush=True)
    for title, table in (("not tried", EXCLUDED), ("known to differ", KNOWN)):
        for reason, entries in table.items():
            print(f"{len(entries)} {title} ({reason}): {', '.join(entries)}")
    compared = len(chosen) - unbuilt
    print(f"{differing} of {compared} differ")
    return differing or unbuilt or (not names and compared < FEWEST)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="model types; by default all")
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    sys.exit(min(main(chosen.names, chosen.processes), 1))
