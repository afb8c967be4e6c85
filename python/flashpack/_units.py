"""Sizes and rates as people read them, in powers of ten, as disks and links are sold."""

from __future__ import annotations


def size_text(count: float) -> str:
    """A number of bytes such as 512 B, 8.39 MB, 3.00 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def rate_text(count: float, seconds: float) -> str:
    """Bytes per second, such as 14.10 GB/s."""
    return f"{size_text(count / seconds)}/s" if seconds > 0 else "no time"
