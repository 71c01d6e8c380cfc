"""A buffer of memory statistics, taken apart.

An entry is ten bytes: a 16-bit tag and a 64-bit value, little-endian and packed (virtio 1.2, 5.5.6.3). A driver may
send any subset in any order, and with new kernels come new tags, which a device has to ignore.

The text asks for a buffer of "a multiple of 6 bytes" (5.5.6.3.1), which fits no entry that it defines. Bytes after the
last whole entry are passed over.

All values are claims of the guest. Linux omits a statistic that it does not have; 2^64 - 1 as "unknown" is the initial
value of a device, as in QEMU.
"""

import struct
from dataclasses import dataclass, field
from typing import Final

from protocol.balloon_statistics import STATISTIC_SIZE, StatisticTag

STATISTICS_BYTES_MAX: Final = 4096
"""Most bytes of one buffer that are parsed. Linux has 16 tags and sends 160 bytes."""

STATISTICS_INTERVAL_MAX: Final = (1 << 32) - 1
"""Most seconds between two requests for statistics that an operator may ask for, as in QEMU."""

_ENTRY: Final = struct.Struct("<HQ")
_NAME_OF_TAG: Final = {int(tag): tag.name.lower() for tag in StatisticTag}

assert _ENTRY.size == STATISTIC_SIZE


@dataclass(frozen=True, slots=True)
class BalloonStatistics:
    """The content of one buffer.

    ``values`` go by the specification's names in lower case (``memfree``, ``majflt``); memory is in bytes, everything
    else counts events since the guest booted. ``unknown`` is the number of entries with unknown tags.
    """

    values: dict[str, int] = field(default_factory=dict)
    unknown: int = 0


def parse_statistics(data: bytes) -> BalloonStatistics:
    """Return the statistics in ``data``; of several entries with one tag the last counts. Never raises."""
    values: dict[str, int] = {}
    unknown = 0
    whole = min(len(data), STATISTICS_BYTES_MAX) // STATISTIC_SIZE * STATISTIC_SIZE
    for tag, value in _ENTRY.iter_unpack(data[:whole]):
        name = _NAME_OF_TAG.get(tag)
        if name is None:
            unknown += 1
        else:
            values[name] = value
    return BalloonStatistics(values, unknown)
