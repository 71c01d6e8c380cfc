"""Zones and their constants (Linux ``include/linux/mmzone.h``). Knows neither how blocks are given out nor reporters.

Orders go from 0 to ``MAX_ORDER`` inclusive, as in Linux since 6.4; a block of order n is ``1 << n`` pages of 4 KiB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from math import isqrt
from typing import Final, NewType

from guest.mm.free_list import FreeList

Pfn = NewType("Pfn", int)
"""A page frame number: guest physical address divided by 4096."""

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
MAX_ORDER: Final = 10
NR_PAGE_ORDERS: Final = MAX_ORDER + 1
MAX_ORDER_NR_PAGES: Final = 1 << MAX_ORDER
PAGEBLOCK_ORDER: Final = 9
PAGEBLOCK_NR_PAGES: Final = 1 << PAGEBLOCK_ORDER
NO_ORDER: Final = NR_PAGE_ORDERS
"""An order that no block has. "From this order on" with this value means "never"."""
MAX_PFN: Final = 1 << 40
"""First page frame number beyond a guest physical address of 52 bits, the most that x86-64 can have."""


class MigrateType(IntEnum):
    """``enum migratetype``, in the kernel's order."""

    UNMOVABLE = 0
    MOVABLE = 1
    RECLAIMABLE = 2
    HIGHATOMIC = 3
    CMA = 4
    ISOLATE = 5


MIGRATE_TYPES: Final = len(MigrateType)


class ReportingState(IntEnum):
    """Where page reporting stands: with rotation for the device, with the reported boundary for each zone."""

    IDLE = 0
    REQUESTED = 1
    ACTIVE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneSpan:
    """Name and page frames of a zone to be made; ``end_pfn`` is the first one behind it."""

    name: str
    start_pfn: int
    end_pfn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermarks:
    """``zone->_watermark`` in pages. Nothing is allocated below ``min``; reclaim goes from ``low`` to ``high``."""

    min: int
    low: int
    high: int


def watermarks(
    managed_pages: int, lowmem_pages: int, *, min_free_kbytes: int | None = None, scale: int = 10
) -> Watermarks:
    """Compute a zone's watermarks as Linux does (mm/page_alloc.c, ``__setup_per_zone_wmarks``).

    Args:
        managed_pages: pages of this zone.
        lowmem_pages: pages of all zones together, of which this zone carries its share.
        min_free_kbytes: ``vm.min_free_kbytes``; None computes 4 * sqrt(lowmem in KiB) within 128 and 262144.
        scale: ``vm.watermark_scale_factor`` in 1/10000 of the zone.
    """
    if min_free_kbytes is None:
        lowmem_kbytes = lowmem_pages << (PAGE_SHIFT - 10)
        min_free_kbytes = max(128, min(262144, isqrt(lowmem_kbytes * 16)))
    minimum = (min_free_kbytes >> (PAGE_SHIFT - 10)) * managed_pages // lowmem_pages
    step = max(minimum >> 2, managed_pages * scale // 10000)
    return Watermarks(min=minimum, low=minimum + step, high=minimum + 2 * step)


class Zone:
    """``struct zone``: the free lists and counters of one span of page frames.

    ``nr_free`` and ``reported_pages`` are fixed arrays with one place per order. Both count blocks of that order, not
    4 KiB pages. ``free_pages`` counts 4 KiB pages. A block that a reporter has isolated is in none of them.

    What page reporting keeps here is written by the registered reporter alone and read by ``page_alloc``:

    ``notify_order``, ``notify``
        a free that ends in a block of at least this order calls ``notify(zone, order)`` (``NO_ORDER``: never).
    ``reporting_state``
        the reported boundary's life cycle for this zone (see ``reported_boundary``); IDLE with any other reporter.
    ``reported_boundary_order``, ``reported_boundary``, ``reported_index``
        while the boundaries are valid: the least order that has one, one list entry per (order, migratetype), and for
        each possible reported block the place in that array (the kernel keeps it in ``page->index``).
        While they are not, the order is ``NO_ORDER``.
    """

    __slots__ = (
        "end_pfn",
        "free_list",
        "free_pages",
        "index",
        "managed_pages",
        "name",
        "node",
        "notify",
        "notify_order",
        "nr_free",
        "reported_boundary",
        "reported_boundary_order",
        "reported_index",
        "reported_pages",
        "reporting_state",
        "start_pfn",
        "watermark_min",
        "watermarks",
    )

    def __init__(self, index: int, span: ZoneSpan, marks: Watermarks, *, node: int = 0) -> None:
        self.index = index
        self.node = node
        self.name = span.name
        self.start_pfn = span.start_pfn
        self.end_pfn = span.end_pfn
        self.managed_pages = span.end_pfn - span.start_pfn
        self.watermarks = marks
        self.watermark_min = marks.min  # a copy one attribute away: every allocation compares with it
        self.free_list = FreeList()
        self.nr_free = [0] * NR_PAGE_ORDERS
        self.free_pages = 0
        self.reported_pages = [0] * NR_PAGE_ORDERS
        self.notify_order = NO_ORDER
        self.notify: Callable[[Zone, int], None] = _nobody
        self.reporting_state = ReportingState.IDLE
        self.reported_boundary_order = NO_ORDER
        self.reported_boundary: list[int] = []
        self.reported_index = bytearray()

    def __repr__(self) -> str:
        return f"<Zone {self.name} pfn {self.start_pfn}..{self.end_pfn} free {self.free_pages}>"


def _nobody(zone: Zone, order: int) -> None:
    # The notifier of a zone without a reporter. notify_order keeps it from being called.
    raise AssertionError(f"zone {zone.name} has no page reporter, but was told of a free of order {order}")
