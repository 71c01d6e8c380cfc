"""Sizes: parsed from text such as ``512M`` or ``1G`` to bytes, and formatted for people."""

import re

from protocol.errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

DIGITS_MOST = 60
"""Digits of a size that is read. 64 bits have 20."""

_SUFFIX = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"([0-9]+)([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the number of bytes that ``text`` means: digits and one of K, M, G, T (powers of 1024), ``iB`` allowed.

    Raises:
        UsageError: ``text`` is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or len(match[1]) > DIGITS_MOST:
        shown = text if len(text) <= DIGITS_MOST else text[:DIGITS_MOST] + "..."
        raise UsageError(f"not a size: {shown!r} (write for example 4096, 512M or 1G)")
    return int(match[1]) * _SUFFIX[match[2].upper()]


def format_size(size: int) -> str:
    """Return ``size`` bytes with the largest unit that keeps it at one or more, for example ``"1.5 GiB"``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
