"""The statistics that a balloon's driver gives its device, on the wire.

Source: virtio 1.2, 5.5.6.3 and 5.5.6.4; tags from 10 on are Linux's (``include/uapi/linux/virtio_balloon.h``, 6.12).
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class StatisticTag(IntEnum):
    """``VIRTIO_BALLOON_S_*``: the meaning of one number of a statistics buffer. Amounts of memory are bytes."""

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJFLT = 2
    MINFLT = 3
    MEMFREE = 4
    MEMTOT = 5
    AVAIL = 6
    CACHES = 7
    HTLB_PGALLOC = 8
    HTLB_PGFAIL = 9
    OOM_KILL = 10
    ALLOC_STALL = 11
    ASYNC_SCAN = 12
    DIRECT_SCAN = 13
    ASYNC_RECLAIM = 14
    DIRECT_RECLAIM = 15


_ENTRY: Final = struct.Struct("<HQ")

STATISTIC_SIZE: Final = _ENTRY.size
"""Bytes of one entry: a 16-bit tag and a 64-bit value, without padding. The specification's "multiple of 6" is an
error."""


def build_statistics(statistics: Mapping[StatisticTag, int]) -> bytes:
    """Return the buffer that holds ``statistics``, one entry for each, in the mapping's order."""
    return b"".join(_ENTRY.pack(tag, value & 0xFFFF_FFFF_FFFF_FFFF) for tag, value in statistics.items())
