"""Makes the corpora that the fuzz targets start from, fuzz/corpus/TARGET, from tests/fixtures.

    python fuzz/seed.py

What the fuzzers have found since stays. The inputs' forms are those of fuzz/fuzz_targets/*.rs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
CORPUS = ROOT / "fuzz" / "corpus"
MAX_BYTES = 1 << 15  # larger files make slow inputs
TRAILER = struct.Struct("<Q8s")
WISH = bytes(32)  # an eager load of everything, without faults
SAFETENSORS_DTYPES = {
    "bfloat16": "BF16", "bool": "BOOL", "complex64": "C64", "float16": "F16", "float32": "F32",
    "float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int16": "I16",
    "int32": "I32", "int64": "I64", "int8": "I8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "uint8": "U8",
}  # fmt: skip


def main() -> None:
    files = [path.read_bytes() for path in sorted(FIXTURES.rglob("*.flashpack"))]
    images = [image for image in files if len(image) <= MAX_BYTES]
    wishes = [
        WISH,
        *(bytes([mode, mode % 3, 1, 31 * (mode == 4), mode % 3, *range(8), *bytes(19)]) for mode in range(5)),
    ]
    seeds = {
        "footer": [footer for image in files for footer in footers(image)],
        "file": images,
        "plan": [wishes[number % len(wishes)] + image[::-1] for number, image in enumerate(images)],
        "read": [wishes[number % len(wishes)] + image for number, image in enumerate(images)],
        "import": [WISH + made for made in safetensors()],
        "frames": list(frames()),
    }
    for target, inputs in seeds.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for data in inputs:
            (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
        print(f"{folder.relative_to(ROOT)}: {len(inputs)} seeds")


def frames() -> Iterator[bytes]:
    """Files with frames, and each frame with its codec and the length of its chunk."""
    for number, codec in enumerate(
        ["raw", *(kind + width for kind in ("fixed", "zstd") for width in ("8", "16", "32"))]
    ):
        name = codec.replace("raw", "plain16")
        image = (FIXTURES / "v5" / f"{name}.flashpack").read_bytes()
        (footer,) = footers(image)
        start = len(image) - TRAILER.size - (len(footer) - 8)
        payload = (FIXTURES / "v5" / f"plain{name.lstrip('fixedzstplan')}.flashpack").read_bytes()
        length = json.loads(footer[:-8]).get("total_payload_bytes", start)
        yield struct.pack("<BH", 4 * number, length) + image[:start]
        yield struct.pack("<BH", 4 * number + 1, 0) + payload
        yield struct.pack("<BH", 3, 0) + image[: -TRAILER.size]


def footers(image: bytes) -> Iterator[bytes]:
    """The footer and where it starts, if the file has one."""
    if len(image) < TRAILER.size:
        return
    length, _ = TRAILER.unpack(image[-TRAILER.size :])
    start = len(image) - TRAILER.size - length
    if start >= 0:
        yield image[start : -TRAILER.size] + struct.pack("<Q", start)


def safetensors() -> Iterator[bytes]:
    """Files with the golden files' tensors: their names, types and shapes, and bytes that count."""
    golden = json.loads((FIXTURES / "expected.json").read_text())["files"]
    for file in golden.values():
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, tensor in sorted(file["tensors"].items()):
            if dtype := SAFETENSORS_DTYPES.get(tensor["dtype"]):
                bits = int("".join(filter(str.isdigit, dtype.split("_")[0])) or "8")
                size = bits // 8
                for dimension in tensor["shape"]:
                    size *= dimension
                offsets = [end, end + size]
                header[name] = {"dtype": dtype, "shape": tensor["shape"], "data_offsets": offsets}
                end += size
        text = json.dumps(header).encode()
        payload = bytes(number % 251 for number in range(end))
        if len(text) + end <= MAX_BYTES:
            yield struct.pack("<Q", len(text)) + text + payload


if __name__ == "__main__":
    main()
